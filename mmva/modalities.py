"""The three modalities, by the names used in files, flags and columns."""

from __future__ import annotations

from typing import Literal, get_args

Modality = Literal["image", "music", "caption"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
AXES: tuple[str, str] = ("valence", "arousal")

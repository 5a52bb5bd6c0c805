"""Names of the three modalities in files, flags and columns, and of video, which a catalog may also contain."""

from typing import Literal, get_args

Modality = Literal["image", "music", "caption"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
AXES: tuple[str, str] = ("valence", "arousal")

# A video has no tower: its frames go through the image tower, its sound through the music tower.
MediaKind = Modality | Literal["video"]
MEDIA_KINDS: tuple[MediaKind, ...] = (*MODALITIES, "video")


def towers_of(kind: str) -> tuple[str, ...]:
    """The towers that read an item of this kind: one, or those of a video's tracks."""
    return ("image", "music") if kind == "video" else (kind,)

"""Numbers of related systems and published floors, so that ours can be set beside them.

None was measured by us: each comes from the system's own paper, on its own data and split, and compares only as far as
those agree. The floors recomputed on the rows at hand stand in `evaluation.Floor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class RelatedFigure:
    """One published figure."""

    system: str
    data: str
    figure: str


@dataclass(frozen=True)
class PublishedFloor:
    """MSE of the best constant prediction on IMEMNet-C's own labels, recomputed from its published files."""

    modality: str
    valence_mse: float
    arousal_mse: float


PUBLISHED_FLOORS: Final[tuple[PublishedFloor, ...]] = (
    PublishedFloor("image", 0.0240, 0.0483),
    PublishedFloor("music", 0.0272, 0.0283),
)

RELATED: Final[tuple[RelatedFigure, ...]] = (
    RelatedFigure("CDCML (2020)", "IMEMNet, split by song", "music arousal MSE .015"),
    RelatedFigure("MERT-95M frozen, linear probe", "DEAM", "arousal R2 about .58"),
    RelatedFigure("Music2Emo (2025)", "DEAM, song level", "R2 valence .518, arousal .623"),
    RelatedFigure("Music2Emo (2025)", "EmoMusic, song level", "R2 valence .651, arousal .762"),
    RelatedFigure("Emo-CLIM (2024)", "image to music", "P@1 .688, P@5 .682, MRR .767"),
    RelatedFigure("ResNet-50", "IAPS", "VA MSE .0174 on [0, 1]"),
)

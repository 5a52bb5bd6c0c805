"""The catalog in the valence-arousal plane: the points to draw, and the spread of the items.

The drawing is a square of SIDE units; valence runs to the right and arousal up, both from 0 to 1.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.affect import MOOD_WORDS, QUADRANTS, quadrant
from mmva.modalities import AXES, MEDIA_KINDS

SIDE: Final = 600.0
MAX_POINTS: Final = 5000
_CROWD = 400
WORD_RADIUS: Final = 0.43


@dataclass(frozen=True)
class Point:
    """One item in the drawing."""

    modality: str
    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Word:
    """A mood word and its position on the circle."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Spread:
    """The spread of a modality: mean and standard deviation per axis, and mean half width of the intervals."""

    modality: str
    items: int
    mean: tuple[float, float]
    deviation: tuple[float, float]
    half_width: tuple[float, float] | None
    quadrants: tuple[tuple[str, int, float], ...]


@dataclass(frozen=True)
class Plane:
    """The drawing and its numbers."""

    points: tuple[Point, ...]
    words: tuple[Word, ...]
    spreads: tuple[Spread, ...]
    items: int

    @property
    def mark_size(self) -> float:
        """Radius of a mark; smaller with many points."""
        return 4.8 if len(self.points) <= _CROWD else 3.2

    @property
    def is_sample(self) -> bool:
        """Whether only some of the items are drawn."""
        return len(self.points) < self.items


def build_plane(annotations: pa.Table) -> Plane:
    """Draw at most MAX_POINTS items, chosen at random within each modality; the numbers are of all items."""
    va_N2 = va_of(annotations)
    modality_N = np.asarray(annotations["modality"].to_pylist(), dtype=object)
    rows = _drawn_rows(modality_N)
    drawn = annotations.select(["id", "modality", "mood"]).take(pa.array(rows)).to_pylist()
    points = tuple(_point(item, *va_N2[row]) for item, row in zip(drawn, rows, strict=True))
    spreads = tuple(
        _spread(modality, annotations, va_N2, modality_N == modality)
        for modality in MEDIA_KINDS
        if (modality_N == modality).any()
    )
    return Plane(points, _words(), spreads, len(va_N2))


def _drawn_rows(modality_N: NDArray[np.object_]) -> NDArray[np.int64]:
    """Rows to draw, the same each time. Larger modalities get the unused share of small ones, and lie below them."""
    generator = np.random.default_rng(0)
    by_size = sorted((np.flatnonzero(modality_N == modality) for modality in MEDIA_KINDS), key=len)
    chosen, left = [], MAX_POINTS
    for position, rows in enumerate(by_size):
        share = min(len(rows), left // (len(by_size) - position))
        chosen.append(np.sort(generator.choice(rows, share, replace=False)))
        left -= share
    return np.concatenate(chosen[::-1])


def va_of(annotations: pa.Table) -> NDArray[np.float64]:
    """VA points of the annotations, [N, 2]."""
    columns = [annotations[axis].to_numpy(zero_copy_only=False).astype(np.float64) for axis in AXES]
    return np.stack(columns, axis=1)


def place(valence: float, arousal: float) -> tuple[float, float]:
    """Coordinates of a VA point in the drawing, rounded to a tenth."""
    return round(valence * SIDE, 1), round((1 - arousal) * SIDE, 1)


def _point(item: dict[str, str], valence: float, arousal: float) -> Point:
    label = f"{item['id']}: {item['modality']}, valence {valence:.2f}, arousal {arousal:.2f}, {item['mood']}"
    return Point(item["modality"], *place(valence, arousal), label)


def _words() -> tuple[Word, ...]:
    """The mood words, counter-clockwise in equal steps from the right; those that name quadrants are left out."""
    words = []
    for index, text in enumerate(MOOD_WORDS):
        angle = 2 * math.pi * index / len(MOOD_WORDS)
        if text not in QUADRANTS:
            x, y = place(0.5 + WORD_RADIUS * math.cos(angle), 0.5 + WORD_RADIUS * math.sin(angle))
            words.append(Word(text, x, y))
    return tuple(words)


def _spread(modality: str, annotations: pa.Table, va_N2: NDArray[np.float64], mask_N: NDArray[np.bool_]) -> Spread:
    va_M2 = va_N2[mask_N]
    names = quadrant(va_M2)
    counts = [(name, int((names == name).sum())) for name in QUADRANTS]
    return Spread(
        modality,
        len(va_M2),
        (float(va_M2[:, 0].mean()), float(va_M2[:, 1].mean())),
        (float(va_M2[:, 0].std()), float(va_M2[:, 1].std())),
        _half_width(annotations.filter(pa.array(mask_N))),
        tuple((name, count, count / len(va_M2)) for name, count in counts),
    )


def _half_width(annotations: pa.Table) -> tuple[float, float] | None:
    """Mean half width of the intervals per axis; None without intervals."""
    widths = []
    for axis in AXES:
        low, high = (annotations[f"{axis}_{side}"].to_numpy(zero_copy_only=False) for side in ("low", "high"))
        width = np.asarray(high, np.float64) - np.asarray(low, np.float64)
        if not np.isfinite(width).any():
            return None
        widths.append(float(np.nanmean(width)) / 2)
    return widths[0], widths[1]

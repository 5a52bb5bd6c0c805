"""Example items from the corners of the plane."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.affect import quadrant
from mmva.modalities import MEDIA_KINDS
from mmva_platform.reporting.data import ReportData
from mmva_platform.reporting.plane import va_of
from mmva_platform.reporting.previews import Preview, preview_if_readable

_PER_MODALITY: Final = {"image": 2, "music": 1, "caption": 1, "video": 1}
_COLUMNS: Final = ["id", "uri", "modality", "valence", "arousal", "mood", "duration_s"]
_CENTRE: Final = "neutral"
# Name -> (title, target point), in the order of the page.
_REGIONS: Final = {
    "excited": ("Excited: pleasant, active", (1.0, 1.0)),
    "tense": ("Tense: unpleasant, active", (0.0, 1.0)),
    "calm": ("Calm: pleasant, quiet", (1.0, 0.0)),
    "sad": ("Sad: unpleasant, quiet", (0.0, 0.0)),
    _CENTRE: ("Neutral: the middle of the plane", (0.5, 0.5)),
}


@dataclass(frozen=True)
class Example:
    """One item; `preview` is None if its media can no longer be read."""

    id: str
    name: str
    modality: str
    valence: float
    arousal: float
    mood: str
    duration: str
    preview: Preview | None


@dataclass(frozen=True)
class Region:
    """A corner of the plane, or its middle, with the items nearest to it."""

    name: str
    title: str
    examples: tuple[Example, ...]


def corner_examples(data: ReportData) -> tuple[Region, ...]:
    """The items nearest to each corner, within its quadrant, and to the centre: two images, a track, a caption each."""
    va_N2 = va_of(data.annotations)
    modality_N = np.asarray(data.annotations["modality"].to_pylist(), dtype=object)
    free_N = np.ones(len(va_N2), bool)
    regions = []
    for name, (title, target) in _REGIONS.items():
        inside_N = free_N if name == _CENTRE else free_N & (quadrant(va_N2) == name)
        rows = [
            row
            for modality in MEDIA_KINDS
            for row in _nearest(va_N2, target, inside_N & (modality_N == modality), _PER_MODALITY[modality])
        ]
        free_N[rows] = False
        items = data.annotations.select(_COLUMNS).take(pa.array(rows, pa.int64())).to_pylist()
        regions.append(Region(name, title, tuple(_example(item, data) for item in items)))
    return tuple(regions)


def _nearest(
    va_N2: NDArray[np.float64], target: tuple[float, float], mask_N: NDArray[np.bool_], most: int
) -> list[int]:
    candidates = np.flatnonzero(mask_N)
    distance = np.linalg.norm(va_N2[candidates] - np.asarray(target), axis=1)
    return [int(row) for row in candidates[np.argsort(distance, kind="stable")[:most]]]


def _example(item: dict[str, Any], data: ReportData) -> Example:
    seconds = item["duration_s"]
    return Example(
        **{name: item[name] for name in ("id", "modality", "valence", "arousal", "mood")},
        name=PurePosixPath(item["id"]).name or item["id"],
        duration="" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}",
        preview=preview_if_readable(item["modality"], item["id"], item["uri"], data.read, data.captions),
    )

"""Which items show what the corners of the plane look and sound like."""

import logging
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
from mmva_platform.reporting.previews import Preview, preview

logger = logging.getLogger(__name__)

_PER_MODALITY: Final = {"image": 2, "music": 1, "caption": 1, "video": 1}
_CENTRE: Final = "neutral"
# Name -> (title, target point). The order is that of reading a page: the pleasant and active first, the centre last.
_REGIONS: Final = {
    "excited": ("Excited: pleasant, active", (1.0, 1.0)),
    "tense": ("Tense: unpleasant, active", (0.0, 1.0)),
    "calm": ("Calm: pleasant, quiet", (1.0, 0.0)),
    "sad": ("Sad: unpleasant, quiet", (0.0, 0.0)),
    _CENTRE: ("Neutral: the middle of the plane", (0.5, 0.5)),
}


@dataclass(frozen=True)
class Example:
    """One item with its preview; `preview` is None where the media could not be read any more."""

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
        regions.append(Region(name, title, tuple(_example(item, data) for item in _items(data.annotations, rows))))
    return tuple(regions)


def _nearest(
    va_N2: NDArray[np.float64], target: tuple[float, float], mask_N: NDArray[np.bool_], most: int
) -> list[int]:
    candidates = np.flatnonzero(mask_N)
    distance = np.linalg.norm(va_N2[candidates] - np.asarray(target), axis=1)
    return [int(row) for row in candidates[np.argsort(distance, kind="stable")[:most]]]


def _items(annotations: pa.Table, rows: list[int]) -> list[dict[str, Any]]:
    columns = ["id", "uri", "modality", "valence", "arousal", "mood", "duration_s"]
    items: list[dict[str, Any]] = annotations.select(columns).take(pa.array(rows, pa.int64())).to_pylist()
    return items


def _example(item: dict[str, Any], data: ReportData) -> Example:
    seconds = item["duration_s"]
    return Example(
        id=item["id"],
        name=PurePosixPath(item["id"]).name or item["id"],
        modality=item["modality"],
        valence=item["valence"],
        arousal=item["arousal"],
        mood=item["mood"],
        duration="" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}",
        preview=_preview(item, data),
    )


def _preview(item: dict[str, Any], data: ReportData) -> Preview | None:
    try:
        text = data.captions.get(item["id"]) if item["modality"] == "caption" else None
        if item["modality"] == "video" or (text is None and item["uri"] is None):
            return None
        return preview(item["modality"], text if text is not None else data.read(item["uri"]))
    except Exception as error:  # noqa: BLE001 - a file that has gone since must not cost the report
        logger.warning("report: no preview of %s (%s)", item["id"], " ".join(str(error).split()))
        return None

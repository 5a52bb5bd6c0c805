"""A published annotation for the page: windows of the plane, the fields of an item, and its neighbours."""

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from mmva.affect import mood
from mmva.modalities import AXES, MEDIA_KINDS
from mmva.zeroshot.search import Region
from mmva_platform.search.index import AnnotationIndex, Hit
from mmva_platform.search.view import CELLS, PlanePoints, View

_BOUNDS: Final = tuple(f"{axis}_{side}" for axis in AXES for side in ("low", "high"))
_DETAILS: Final = ("id", "uri", "modality", *AXES, *_BOUNDS, "mood", "duration_s", "windows", "sha256", "caption")
_FILES_KEPT: Final = 64  # without embeddings, some hundred bytes per item
_DIGITS: Final = 6  # of coordinates to draw: a pixel at the deepest zoom
_CURVE_POINTS: Final = 600
NEIGHBOURS: Final = 4


class ExploredCatalog(AnnotationIndex):
    """An annotation's index with the page's data, which is computed on first use."""

    @cached_property
    def by_modality(self) -> dict[str, int]:
        """Number of items by modality."""
        found = {each["values"]: each["counts"] for each in pc.value_counts(self.items["modality"]).to_pylist()}
        return {kind: found[kind] for kind in MEDIA_KINDS if kind in found}

    @cached_property
    def _points(self) -> PlanePoints:
        """The points, sorted for windows."""
        va_N2 = np.column_stack([np.asarray(self.items[axis], np.float32) for axis in AXES])
        kinds = pc.index_in(self.items["modality"], pa.array(MEDIA_KINDS, pa.large_string()))
        return PlanePoints(va_N2, np.asarray(kinds))

    @cached_property
    def _ends(self) -> list[int]:
        """The first row after each file."""
        assert self.annotation is not None
        return list(accumulate(file.rows for file in self.annotation.files()))

    @cached_property
    def _rows_of_file(self) -> Callable[[int], pa.Table]:
        # Must not hold `self`, so that a replaced index is freed at once, without the garbage collector.
        annotation = self.annotation
        assert annotation is not None
        return lru_cache(_FILES_KEPT)(lambda number: annotation.read(annotation.files()[number], _DETAILS))

    def summary(self) -> dict[str, Any]:
        """Number of items by modality, the moods, and the run."""
        moods = sorted(pc.unique(self.items["mood"]).to_pylist())
        return {"items": len(self), "by_modality": self.by_modality, "moods": moods, "run_id": self.run_id}

    def view(
        self,
        region: Region,
        modalities: Collection[str],
        cells: int = CELLS,
        *,
        mood: str | None = None,
        width: float | None = None,
    ) -> dict[str, Any]:
        """Points, or counts in the cells of a grid, in a window; see search.view.

        `mood` filters items by their mood word, `width` by the width of their 90 % intervals in both axes.
        """
        found = self._found(region, modalities, mood, width, cells=cells)
        window = {"valence": region.valence, "arousal": region.arousal, "total": found.total}
        if found.row_K is None:
            counts = {MEDIA_KINDS[kind]: count.ravel().tolist() for kind, count in found.counts.items()}
            return window | {"cells": cells, "counts": counts}
        items = self.items.select(["id", "modality", *AXES]).take(pa.array(found.row_K))
        points = {axis: np.round(np.asarray(items[axis], np.float64), _DIGITS).tolist() for axis in AXES}
        return window | {"points": {"id": items["id"].to_pylist(), "modality": items["modality"].to_pylist()} | points}

    def table(
        self, region: Region, modalities: Collection[str], *, mood: str | None, width: float | None, most: int
    ) -> pa.Table | None:
        """id, uri, modality, valence, arousal and mood of all items of a window; None if there are more than `most`.

        See view for the other arguments.
        """
        row_K = self._found(region, modalities, mood, width, most=most).row_K
        return None if row_K is None else self.items.take(pa.array(row_K))

    def _found(
        self, region: Region, modalities: Collection[str], mood: str | None, width: float | None, **options: int
    ) -> View:
        kinds = [MEDIA_KINDS.index(name) for name in MEDIA_KINDS if name in modalities]
        keep_N = None
        if mood is not None:
            keep_N = np.asarray(pc.equal(self.items["mood"], mood))
        if width is not None:
            narrow_N = self._widths <= width
            keep_N = narrow_N if keep_N is None else keep_N & narrow_N
        return self._points.view(region, kinds, keep_N=keep_N, **options)

    @cached_property
    def _widths(self) -> NDArray[np.float32]:
        """Width of the wider of an item's two intervals; infinite without intervals."""
        assert self.annotation is not None
        bounds = self.annotation.table(_BOUNDS)
        low_high = {name: np.asarray(bounds[name].fill_null(np.nan), np.float32) for name in _BOUNDS}
        widths = [low_high[f"{axis}_high"] - low_high[f"{axis}_low"] for axis in AXES]
        return np.nan_to_num(np.maximum(*widths), nan=np.inf)

    def details(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - the column's name
        """The fields of an item, without its media; None if there is no such item.

        Raises CheckFailed if its file is damaged.
        """
        row = self.row(id)
        if row is None:
            return None
        file = bisect_right(self._ends, row)
        first = self._ends[file - 1] if file else 0
        details: dict[str, Any] = self._rows_of_file(file).slice(row - first, 1).to_pylist()[0]
        assert details["id"] == id
        details["windows"] = _thinned(details["windows"] or [])
        return details | {"text": details.pop("caption")}

    def around(self, va_2: ArrayLike, *, without: str | None = None) -> dict[str, list[Hit]]:
        """The nearest items of each modality except `without`; see AnnotationIndex.search."""
        return {kind: self.search(va_2, top=NEIGHBOURS, modality=kind) for kind in self.by_modality if kind != without}


def mood_of(va_2: Sequence[float]) -> str:
    """The mood word nearest to a point."""
    return str(mood(np.asarray(va_2)))


def _thinned(windows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Every n-th window of a curve with more points than a screen can show."""
    step = max(1, math.ceil(len(windows) / _CURVE_POINTS))
    return windows[::step]

"""The content of a window of the plane: every point if they are few, else counts in the cells of a grid.

So a million points cost the browser no more than some thousands. None is left out: zooming in turns counts into points.

Shapes: N points, K of them shown, M kinds, C cells per side; va_N2 holds (valence, arousal) per row.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.zeroshot.search import Region

MAX_POINTS: Final = 3000
CELLS: Final = 96


@dataclass(frozen=True)
class View:
    """The content of a window."""

    total: int  # points of the wanted kinds in the window
    row_K: NDArray[np.int64] | None  # their rows, if they are at most MAX_POINTS
    # kind -> points in each cell [C, C], the first row at the lowest arousal; empty if row_K is given
    counts: dict[int, NDArray[np.int64]]


class PlanePoints:
    """Points sorted by valence, so that a narrow window touches only its own strip of the plane."""

    def __init__(self, va_N2: ArrayLike, kind_N: ArrayLike) -> None:
        """Sort the points; kinds are small integers from 0."""
        va = np.asarray(va_N2, np.float32).reshape(-1, 2)
        self._row_N = np.argsort(va[:, 0], kind="stable")
        self._valence_N, self._arousal_N = va[self._row_N, 0], va[self._row_N, 1]
        self._kind_N = np.asarray(kind_N, np.uint8)[self._row_N]

    def view(
        self,
        region: Region,
        kinds: Collection[int],
        *,
        cells: int = CELLS,
        most: int = MAX_POINTS,
        keep_N: NDArray[np.bool_] | None = None,
    ) -> View:
        """The view of a window (bounds included) for some kinds; `keep_N` marks rows that pass the filters.

        More than `most` points are counted in a grid of `cells` x `cells` cells.
        """
        low, high = (np.float32(bound) for bound in region.valence)
        strip = slice(np.searchsorted(self._valence_N, low, "left"), np.searchsorted(self._valence_N, high, "right"))
        arousal_N, kind_N = self._arousal_N[strip], self._kind_N[strip]
        bottom, top = (np.float32(bound) for bound in region.arousal)
        wanted = np.zeros(256, bool)
        wanted[list(kinds)] = True
        at_K = np.flatnonzero((arousal_N >= bottom) & (arousal_N <= top) & wanted[kind_N])
        if keep_N is not None:
            at_K = at_K[keep_N[self._row_N[strip][at_K]]]
        if len(at_K) <= most:
            return View(len(at_K), np.sort(self._row_N[strip][at_K]), {})
        column_K = _cell(self._valence_N[strip][at_K], low, high, cells)
        cell_K = _cell(arousal_N[at_K], bottom, top, cells) * cells + column_K
        shown = kind_N[at_K].astype(np.int64)
        flat = np.bincount(shown * cells**2 + cell_K, minlength=(max(kinds) + 1) * cells**2)
        counts = flat.reshape(-1, cells, cells)
        return View(len(at_K), None, {kind: counts[kind] for kind in sorted(kinds) if counts[kind].any()})


def _cell(value_K: NDArray[np.float32], low: np.float32, high: np.float32, cells: int) -> NDArray[np.int64]:
    """Index of each value's cell; the upper bound belongs to the last one."""
    if high <= low:
        return np.zeros(len(value_K), np.int64)
    return np.minimum(((value_K - low) * (cells / (high - low))).astype(np.int64), cells - 1)

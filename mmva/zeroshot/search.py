"""Exact nearest neighbours in the valence-arousal plane, with filters and pages.

Points are sorted by group and valence. A strided sample of the points that pass the filters gives an upper bound for
the distance of the K-th neighbour, so only a strip of the plane around the query has to be scanned. A tree is faster
without filters, but hundreds of times slower if filters exclude many points. benchmarks/search.py compares this with
scipy's cKDTree and FAISS.

Shapes: N points, K neighbours, G groups; va_N2 holds (valence, arousal) per row.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.errors import UsageError

_SAMPLES: Final = 4096  # least number of points in the sample that bounds the strip
_SAMPLES_A_NEIGHBOUR: Final = 32  # least number of these points per wanted neighbour
_ROUNDING: Final = 1e-6  # accuracy of float32 distances in the unit square


@dataclass(frozen=True)
class Region:
    """A closed rectangle of the plane; by default all of it. Raises UsageError unless 0 <= low <= high <= 1."""

    valence: tuple[float, float] = (0, 1)
    arousal: tuple[float, float] = (0, 1)

    def __post_init__(self) -> None:
        for axis in ("valence", "arousal"):
            low, high = getattr(self, axis)
            if not 0 <= low <= high <= 1:
                raise UsageError(f"{axis} {low:g} to {high:g}: give two numbers from 0 to 1, the lower one first")


class PlaneIndex:
    """Points of the plane in memory, 16 bytes per point."""

    def __init__(self, va_N2: ArrayLike, group_N: ArrayLike | None = None) -> None:
        """Sort the points [N, 2]. `group_N` is a small integer per point, such as its modality (None: one group)."""
        va = np.asarray(va_N2, np.float32).reshape(-1, 2)
        group = np.zeros(len(va), np.int64) if group_N is None else np.asarray(group_N)
        self._row_N = np.lexsort((va[:, 0], group))
        self._valence_N, self._arousal_N = va[self._row_N, 0], va[self._row_N, 1]
        sorted_N = group[self._row_N]
        self._slices = {
            int(name): (int(np.searchsorted(sorted_N, name, "left")), int(np.searchsorted(sorted_N, name, "right")))
            for name in np.unique(group)
        }

    def __len__(self) -> int:
        return len(self._row_N)

    def nearest(
        self,
        va_2: ArrayLike,
        count: int,
        *,
        offset: int = 0,
        groups: Collection[int] | None = None,
        region: Region | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The points nearest to a query that pass the filters, without the first `offset` of them.

        Equal distances are in the order of the rows, so pages do not overlap or have gaps. `groups` None means all.
        Returns rows and distances, nearest first, [K] each, K <= count.
        """
        query_2, region = np.asarray(va_2, np.float64), region or Region()
        wanted = offset + count
        chosen = [
            self._strip(start, stop, *region.valence)
            for group, (start, stop) in self._slices.items()
            if groups is None or group in groups
        ]
        reach = self._reach(chosen, query_2, wanted, region)
        strips = [self._strip(start, stop, query_2[0] - reach, query_2[0] + reach) for start, stop in chosen]
        at_K = np.concatenate([
            np.empty(0, np.int64),
            *(self._reached(slice(start, stop), query_2, reach, region) for start, stop in strips),
        ])  # fmt: skip
        distance_K = np.hypot(self._valence_N[at_K] - query_2[0], self._arousal_N[at_K] - query_2[1])
        if len(at_K) > wanted:
            near_K = distance_K <= np.partition(distance_K, wanted - 1)[wanted - 1]
            at_K, distance_K = at_K[near_K], distance_K[near_K]
        row_K = self._row_N[at_K]
        order_K = np.lexsort((row_K, distance_K))[offset:wanted]
        return row_K[order_K], distance_K[order_K]

    def _reach(self, chosen: list[tuple[int, int]], query_2: NDArray[np.float64], wanted: int, region: Region) -> float:
        """An upper bound for the distance of the `wanted` nearest points: that of a sample is never smaller."""
        step = sum(stop - start for start, stop in chosen) // max(_SAMPLES, _SAMPLES_A_NEIGHBOUR * wanted)
        if step < 2:
            return math.inf
        squared = []
        for start, stop in chosen:
            some = slice(start, stop, step)
            squared.append(self._squared(some, query_2)[self._inside(some, region)])
        squared_K = np.concatenate(squared)
        if len(squared_K) < wanted:
            return math.inf
        return math.sqrt(np.partition(squared_K, wanted - 1)[wanted - 1]) + _ROUNDING

    def _reached(self, some: slice, query_2: NDArray[np.float64], reach: float, region: Region) -> NDArray[np.int64]:
        """Positions of a strip's points within reach of the query and inside the region."""
        near_N = self._squared(some, query_2) <= np.float32((reach + _ROUNDING) ** 2)
        near_N &= self._inside(some, region)
        return some.start + np.flatnonzero(near_N)

    def _strip(self, start: int, stop: int, low: float, high: float) -> tuple[int, int]:
        """The part of a slice with a valence in [low, high]."""
        valence_N = self._valence_N[start:stop]
        first = np.searchsorted(valence_N, np.float32(low), "left")
        last = np.searchsorted(valence_N, np.float32(high), "right")
        return start + int(first), start + int(last)

    def _squared(self, some: slice, query_2: NDArray[np.float64]) -> NDArray[np.float32]:
        valence, arousal = query_2.astype(np.float32)
        squared_N = (self._valence_N[some] - valence) ** 2
        squared_N += (self._arousal_N[some] - arousal) ** 2
        return squared_N

    def _inside(self, some: slice, region: Region) -> NDArray[np.bool_]:
        """Which points are within the region's arousals; the caller has selected by valence."""
        low, high = (np.float32(bound) for bound in region.arousal)
        arousal_N = self._arousal_N[some]
        return (arousal_N >= low) & (arousal_N <= high)

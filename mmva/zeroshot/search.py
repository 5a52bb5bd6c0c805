"""Exact nearest neighbours in the valence-arousal plane, with filters and pages.

Points lie sorted by group and valence. A strided sample of the points that pass the filters bounds the distance of the
K-th neighbour from above, so only a strip of the plane about the query has to be scanned. That beats a full scan as a
tree does, and unlike a tree it needs nothing built but a sort and takes filters and pages as they come: see
benchmarks/search.py, which measures it against scipy's cKDTree and FAISS.

Shapes: N points, K neighbours, G groups; va_N2 holds (valence, arousal) per row.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.errors import UsageError

_SAMPLES: Final = 8192  # points that bound the strip
_ROUNDING: Final = 1e-6  # float32 distances in the unit square are this exact


@dataclass(frozen=True)
class Region:
    """A rectangle of the plane, bounds included; all of it by default.

    Raises:
        UsageError: If a bound is not in [0, 1], or a low bound is above its high one.
    """

    valence: tuple[float, float] = (0, 1)
    arousal: tuple[float, float] = (0, 1)

    def __post_init__(self) -> None:
        for axis in ("valence", "arousal"):
            low, high = getattr(self, axis)
            if not 0 <= low <= high <= 1:
                raise UsageError(f"{axis} {low:g} to {high:g}: give two numbers from 0 to 1, the lower one first")


class PlaneIndex:
    """Points of the plane in memory, 16 bytes a point."""

    def __init__(self, va_N2: ArrayLike, group_N: ArrayLike | None = None) -> None:
        """Sort the points.

        Args:
            va_N2: Points, kept as float32.
            group_N: A small integer per point, such as its modality; all points are one group if None.
        """
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
        """How many points there are."""
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
        """The points nearest to a query that pass the filters.

        Equal distances stand in the order of the rows, so pages neither overlap nor leave gaps.

        Args:
            va_2: The query.
            count: How many to return at most.
            offset: How many of the nearest to leave out before.
            groups: Only these; all of them if None.
            region: Only points in it.

        Returns:
            Rows and distances, nearest first, [K] each, K <= count.
        """
        query_2, wanted = np.asarray(va_2, np.float64), offset + count
        parts = [
            self._nearest_of(start, stop, query_2, wanted, region or Region())
            for group, (start, stop) in self._slices.items()
            if groups is None or group in groups
        ]
        at_K = np.concatenate([np.empty(0, np.int64), *parts])
        distance_K = self._distances(at_K, query_2)
        row_K = self._row_N[at_K]
        order_K = np.lexsort((row_K, distance_K))[offset:wanted]
        return row_K[order_K], distance_K[order_K]

    def _nearest_of(
        self, start: int, stop: int, query_2: NDArray[np.float64], wanted: int, region: Region
    ) -> NDArray[np.int64]:
        """Places of at least the `wanted` nearest points of one slice, if it has so many, in no order."""
        low, high = (np.float32(bound) for bound in region.valence)
        start, stop = self._strip(start, stop, low, high)
        step = max(1, (stop - start) // max(_SAMPLES, 64 * wanted))
        if step > 1:
            sample_K = self._within(np.arange(start, stop, step), region)
            if len(sample_K) >= wanted:
                # The K-th of a part is no nearer than the K-th of the whole.
                distance_K = self._distances(sample_K, query_2)
                reach = float(np.partition(distance_K, wanted - 1)[wanted - 1]) + _ROUNDING
                start, stop = self._strip(start, stop, query_2[0] - reach, query_2[0] + reach)
                return self._reached(start, stop, query_2, reach, region)
        at_K = self._within(np.arange(start, stop), region)
        if len(at_K) <= wanted:
            return at_K
        distance_K = self._distances(at_K, query_2)
        return at_K[distance_K <= np.partition(distance_K, wanted - 1)[wanted - 1]]

    def _reached(
        self, start: int, stop: int, query_2: NDArray[np.float64], reach: float, region: Region
    ) -> NDArray[np.int64]:
        """Places of a strip that lie within reach of the query, and in the region."""
        valence, arousal = query_2.astype(np.float32)
        squared_N = (self._valence_N[start:stop] - valence) ** 2
        squared_N += (self._arousal_N[start:stop] - arousal) ** 2
        return self._within(start + np.flatnonzero(squared_N <= np.float32((reach + _ROUNDING) ** 2)), region)

    def _strip(self, start: int, stop: int, low: float, high: float) -> tuple[int, int]:
        """The part of a slice whose valence lies in [low, high]."""
        valence_N = self._valence_N[start:stop]
        first = np.searchsorted(valence_N, np.float32(low), "left")
        last = np.searchsorted(valence_N, np.float32(high), "right")
        return start + int(first), start + int(last)

    def _within(self, at_K: NDArray[np.int64], region: Region) -> NDArray[np.int64]:
        low, high = region.arousal
        if (low, high) == (0, 1):
            return at_K
        arousal_K = self._arousal_N[at_K]
        return at_K[(arousal_K >= np.float32(low)) & (arousal_K <= np.float32(high))]

    def _distances(self, at_K: NDArray[np.int64], query_2: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.hypot(self._valence_N[at_K] - query_2[0], self._arousal_N[at_K] - query_2[1])

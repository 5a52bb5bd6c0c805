"""Windows onto the plane: every point or every cell's count, against a plain loop over the points."""

from __future__ import annotations

import numpy as np
import pytest

from mmva.zeroshot.search import Region
from mmva_platform.search.view import PlanePoints

REGIONS = [Region(), Region((0.25, 0.5), (0.5, 1.0)), Region((0.9, 1.0), (0.0, 0.05)), Region((0.5, 0.5), (0.0, 1.0))]


@pytest.fixture(scope="module")
def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    va_N2 = np.round(rng.random((5000, 2)), 2).astype(np.float32)  # many equal values, some on every bound
    return va_N2, rng.integers(0, 4, 5000)


def inside(va_N2: np.ndarray, kind_N: np.ndarray, region: Region, kinds: set[int]) -> np.ndarray:
    bounds = np.float32([region.valence, region.arousal])
    within_N = ((va_N2 >= bounds[:, 0]) & (va_N2 <= bounds[:, 1])).all(axis=1)
    return np.flatnonzero(within_N & np.isin(kind_N, list(kinds)))


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("kinds", [{0, 1, 2, 3}, {2}])
def test_few_points_are_given_one_by_one(points, region: Region, kinds: set[int]) -> None:
    view = PlanePoints(*points).view(region, kinds, most=5000)
    wanted = inside(*points, region, kinds)
    assert view.row_K is not None
    assert view.row_K.tolist() == wanted.tolist()
    assert (view.total, view.counts) == (len(wanted), {})


@pytest.mark.parametrize("region", REGIONS)
def test_many_points_are_counted_none_left_out(points, region: Region) -> None:
    va_N2, kind_N = points
    view = PlanePoints(va_N2, kind_N).view(region, {0, 1, 3}, cells=8, most=0)
    assert view.row_K is None
    assert (
        view.total == sum(int(count.sum()) for count in view.counts.values()) == len(inside(*points, region, {0, 1, 3}))
    )
    for kind, count_CC in view.counts.items():
        expected_CC = np.zeros((8, 8), int)
        for row in inside(va_N2, kind_N, region, {kind}):
            place = []
            for value, (low, high) in zip(va_N2[row], (region.valence, region.arousal), strict=True):
                low32, high32 = np.float32(low), np.float32(high)
                share = (value - low32) * (np.float32(8) / (high32 - low32)) if high > low else 0
                place.append(min(7, int(share)))
            expected_CC[place[1], place[0]] += 1
        assert np.array_equal(count_CC, expected_CC)


def test_the_border_between_points_and_counts(points) -> None:
    plane = PlanePoints(*points)
    total = plane.view(REGIONS[1], {0, 1, 2, 3}).total
    assert plane.view(REGIONS[1], {0, 1, 2, 3}, most=total).row_K is not None
    assert plane.view(REGIONS[1], {0, 1, 2, 3}, most=total - 1).row_K is None


def test_an_empty_catalog_and_no_kinds(points) -> None:
    assert PlanePoints(np.empty((0, 2)), np.empty(0)).view(Region(), {0}).total == 0
    assert PlanePoints(*points).view(Region(), set()).total == 0

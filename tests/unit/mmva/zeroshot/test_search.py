"""Nearest neighbours in the plane: equal to a plain sort, whatever the filters, the page and the ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmva.errors import UsageError
from mmva.zeroshot import search as module
from mmva.zeroshot.search import PlaneIndex, Region


def by_sorting(va_N2, query_2, count, offset=0, *, group_N=None, groups=None, region=None):
    va_N2, query_2 = np.asarray(va_N2, np.float32), np.asarray(query_2, np.float64)
    kept_N = np.ones(len(va_N2), bool)
    if groups is not None:
        kept_N &= np.isin(group_N, groups)
    for axis, bounds in enumerate((region.valence, region.arousal) if region else ()):
        kept_N &= (va_N2[:, axis] >= np.float32(bounds[0])) & (va_N2[:, axis] <= np.float32(bounds[1]))
    distance_N = np.hypot(va_N2[:, 0] - query_2[0], va_N2[:, 1] - query_2[1])
    rows = np.flatnonzero(kept_N)
    ordered = rows[np.lexsort((rows, distance_N[rows]))][offset : offset + count]
    return ordered, distance_N[ordered]


def points(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).beta(2, 2, (count, 2))


sides = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda two: (min(two), max(two)))


@settings(deadline=None)
@given(
    count=st.integers(0, 3000),
    seed=st.integers(0, 10**6),
    coarse=st.sampled_from([None, 3, 30]),
    query=st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)),
    top=st.integers(1, 40),
    offset=st.sampled_from([0, 0, 7, 500]),
    groups=st.sampled_from([None, (0,), (1, 2), (9,)]),
    region=st.none() | st.builds(Region, sides, sides),
)
def test_equal_to_sorting(*, count, seed, coarse, query, top, offset, groups, region) -> None:
    va_N2 = points(count, seed)
    if coarse:  # many equal points
        va_N2 = np.round(va_N2 * coarse) / coarse
    group_N = np.random.default_rng(seed).integers(0, 3, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SAMPLES", 100)  # so that small sets are sampled too
        index = PlaneIndex(va_N2, group_N)
        rows, distances = index.nearest(query, top, offset=offset, groups=groups, region=region)
    wanted_rows, wanted_distances = by_sorting(va_N2, query, top, offset, group_N=group_N, groups=groups, region=region)
    assert rows.tolist() == wanted_rows.tolist()
    assert distances.tolist() == wanted_distances.tolist()


def test_a_million_points_in_a_narrow_region() -> None:
    va_N2 = points(1_000_000, 1)
    index = PlaneIndex(va_N2)
    assert len(index) == 1_000_000
    for region in (None, Region((0.9, 0.95), (0.05, 0.1)), Region((0.2, 0.2), (0, 1))):
        rows, distances = index.nearest((0.3, 0.6), 25, offset=10, region=region)
        wanted = by_sorting(va_N2, (0.3, 0.6), 25, 10, region=region)
        assert rows.tolist() == wanted[0].tolist()
        assert distances.tolist() == wanted[1].tolist()


def test_points_of_one_distance_are_not_lost_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample's bound is met exactly: on a ring every point is as near as the sampled ones."""
    monkeypatch.setattr(module, "_SAMPLES", 100)
    angle_N = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    va_N2 = 0.5 + 0.25 * np.column_stack([np.cos(angle_N), np.sin(angle_N)])
    rows, _ = PlaneIndex(va_N2).nearest((0.5, 0.5), 3)
    assert rows.tolist() == by_sorting(va_N2, (0.5, 0.5), 3)[0].tolist()


def test_pages_hold_every_point_once_even_among_equals() -> None:
    va_N2 = np.repeat([[0.2, 0.2], [0.8, 0.8]], 500, axis=0)
    index = PlaneIndex(va_N2)
    pages = [index.nearest((0.8, 0.8), 100, offset=start)[0] for start in range(0, 1100, 100)]
    assert np.concatenate(pages).tolist() == [*range(500, 1000), *range(500)]


@pytest.mark.parametrize("bounds", [(0.6, 0.5), (-0.1, 1), (0, 1.1), (float("nan"), 1)])
def test_a_region_has_bounds_in_order(bounds) -> None:
    for axis in ("valence", "arousal"):
        with pytest.raises(UsageError, match=f"{axis} .* the lower one first"):
            Region(**{axis: bounds})

"""Conformal intervals: the exact rank, the promised coverage, and honesty with few items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmva.evaluation.intervals import conformal_intervals, interval_bounds


def test_rank_is_the_corrected_one() -> None:
    label = np.zeros((9, 2))
    pred = np.stack([np.arange(1, 10) / 100, np.arange(9, 0, -1) / 50], axis=1)
    assert conformal_intervals(pred, label, 0.9) == pytest.approx({"valence": 0.09, "arousal": 0.18})
    assert conformal_intervals(pred, label, 0.5) == pytest.approx({"valence": 0.05, "arousal": 0.10})


def test_too_few_items_promise_the_whole_plane() -> None:
    assert conformal_intervals(np.zeros((8, 2)), np.zeros((8, 2)), 0.9) == {"valence": 1.0, "arousal": 1.0}
    assert conformal_intervals(np.zeros((0, 2)), np.zeros((0, 2))) == {"valence": 1.0, "arousal": 1.0}


def test_new_items_are_covered_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        residual = rng.standard_t(3, (60, 2)) * 0.05
        q = conformal_intervals(residual[:50], np.zeros((50, 2)), 0.9)["valence"]
        covered.append((np.abs(residual[50:, 0]) <= q).mean())
    assert 0.89 <= np.mean(covered) <= 0.94


@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=30),
    seed=st.integers(0, 10_000),
    coverage=st.sampled_from([0.5, 0.8, 0.9]),
    alike=st.floats(0, 1),
)
def test_groups_are_covered_however_alike_and_unequal_they_are(
    sizes: list[int], seed: int, coverage: float, alike: float
) -> None:
    """Exactly, not in expectation: each group left out in turn, its share inside what the others promise."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    error_N = 0.3 * (alike * rng.random(len(sizes))[groups] + (1 - alike) * rng.random(len(groups)))
    error_N2 = np.stack([error_N, error_N], axis=1)
    inside = []
    for left_out in range(len(sizes)):
        here = groups == left_out
        q = conformal_intervals(error_N2[~here], 0 * error_N2[~here], coverage, groups=groups[~here])["valence"]
        inside.append((error_N[here] <= q).mean())
    assert np.mean(inside) >= coverage - 1e-9


def test_rows_of_clustered_data_promise_too_much_and_groups_do_not() -> None:
    """Twelve songs of six clips that err alike: by rows, the promise is of the second worst song."""
    rng = np.random.default_rng(0)
    songs = np.repeat(np.arange(12), 6)
    by_rows, by_songs = [], []
    for _ in range(1500):
        error_S = rng.random(13)
        error_N2 = np.stack([error_S[songs]] * 2, axis=1)
        for found, groups in ((by_rows, None), (by_songs, songs)):
            q = conformal_intervals(error_N2, np.zeros((72, 2)), 0.9, groups=groups)["arousal"]
            found.append(error_S[12] <= q)
    assert np.mean(by_rows) < 0.87  # 11 / 13 = .846
    assert 0.9 <= np.mean(by_songs) < 0.95  # 12 / 13 = .923


def test_groups_of_one_are_split_conformal_and_repeating_an_item_changes_nothing() -> None:
    error_N2 = np.random.default_rng(1).random((40, 2))
    alone = conformal_intervals(error_N2, 0 * error_N2)
    assert conformal_intervals(error_N2, 0 * error_N2, groups=np.arange(40)) == alone
    thrice = np.repeat(error_N2, 3, axis=0)
    assert conformal_intervals(thrice, 0 * thrice, groups=np.repeat(np.arange(40), 3)) == alone


def test_fewer_than_nine_groups_promise_the_whole_plane() -> None:
    zeros_N2 = np.zeros((800, 2))
    assert conformal_intervals(zeros_N2, zeros_N2, groups=np.arange(800) % 8) == {"valence": 1.0, "arousal": 1.0}
    assert conformal_intervals(zeros_N2, zeros_N2, groups=np.arange(800) % 9) == {"valence": 0.0, "arousal": 0.0}


def test_bounds_stay_in_the_plane() -> None:
    low, high = interval_bounds([[0.05, 0.5], [0.9, 0.98]], {"valence": 0.2, "arousal": 0.1})
    np.testing.assert_allclose(low, [[0.0, 0.4], [0.7, 0.88]])
    np.testing.assert_allclose(high, [[0.25, 0.6], [1.0, 1.0]])


def test_every_item_needs_a_group() -> None:
    with pytest.raises(ValueError, match="one entry for each of 3 items, got 2"):
        conformal_intervals(np.zeros((3, 2)), np.zeros((3, 2)), groups=["a", "b"])


@pytest.mark.parametrize(
    ("pred", "coverage", "message"),
    [
        (np.zeros((3, 1)), 0.9, "must both be"),
        (np.full((3, 2), np.nan), 0.9, "NaN"),
        (np.zeros((3, 2)), 1.0, "coverage"),
    ],
)
def test_mistakes_are_named(pred: np.ndarray, coverage: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conformal_intervals(pred, np.zeros((3, 2)), coverage)

"""Conformal intervals: the exact rank, the promised coverage, and honesty with few items."""

from __future__ import annotations

import numpy as np
import pytest

from mmva.intervals import conformal_intervals, interval_bounds


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


def test_bounds_stay_in_the_plane() -> None:
    low, high = interval_bounds([[0.05, 0.5], [0.9, 0.98]], {"valence": 0.2, "arousal": 0.1})
    np.testing.assert_allclose(low, [[0.0, 0.4], [0.7, 0.88]])
    np.testing.assert_allclose(high, [[0.25, 0.6], [1.0, 1.0]])


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

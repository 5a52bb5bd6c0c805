"""The paired bootstrap: both models weighed alike in each resample, groups as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from mmva.evaluation.bootstrap import bootstrap_paired_mse
from mmva.modalities import AXES


def rows(count: int = 300, groups: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.random((count, 2))
    shared = rng.normal(0, 0.2, label.shape)  # an error that both models make
    first = label + shared + rng.normal(0, 0.02, label.shape)
    second = label + shared + rng.normal(0, 0.02, label.shape)
    return first, second, label, np.repeat(np.arange(groups), count // groups)


def test_resamples_are_differences_of_mse_on_the_same_resampled_groups() -> None:
    first, second, label, group = rows(40, 8)
    found = bootstrap_paired_mse(first, second, label, group, resamples=50, confidence=1.0, seed=3)
    rng = np.random.default_rng(3)
    differences = []
    for _ in range(50):
        drawn = np.concatenate([np.flatnonzero(group == g) for g in rng.integers(8, size=8)])
        mse_2 = [((points[drawn] - label[drawn]) ** 2).mean(axis=0) for points in (first, second)]
        differences.append(mse_2[0] - mse_2[1])
    for i, axis in enumerate(AXES):
        values = np.array(differences)[:, i]
        assert (found[axis].low, found[axis].high) == pytest.approx((values.min(), values.max()))
        assert found[axis].groups == 8
    assert found["mean"].first == pytest.approx(((first - label) ** 2).mean())
    assert found["mean"].high == pytest.approx(np.array(differences).mean(axis=1).max())


def test_the_same_points_differ_by_nothing() -> None:
    first, _, label, group = rows()
    found = bootstrap_paired_mse(first, first, label, group)
    assert all((each.low, each.high) == (0, 0) for each in found.values())


def test_errors_that_both_make_cancel() -> None:
    """Unpaired, the difference would be as uncertain as either MSE, ten times as wide."""
    first, second, label, group = rows()
    found = bootstrap_paired_mse(first, second, label, group)["valence"]
    apart = bootstrap_paired_mse(first, label, label, group)["valence"]
    assert found.high - found.low < 0.5 * (apart.high - apart.low)


def test_exchanging_the_models_turns_the_interval_round() -> None:
    first, second, label, group = rows()
    one, other = (bootstrap_paired_mse(*pair, label, group)["arousal"] for pair in ((first, second), (second, first)))
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_clips_of_one_song_do_not_count_as_many() -> None:
    rng = np.random.default_rng(0)
    label = rng.random((600, 2))
    song = np.repeat(np.arange(30), 20)
    first = label + np.repeat(rng.normal(0, 0.1, (30, 2)), 20, axis=0)
    by_song, by_clip = (
        bootstrap_paired_mse(first, label, label, groups)["valence"] for groups in (song, np.arange(600))
    )
    assert by_song.high - by_song.low > 2 * (by_clip.high - by_clip.low)


def test_the_upper_bound_is_above_the_truth_about_95_times_in_100() -> None:
    above = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        label = np.zeros((80, 2))
        first, second = rng.normal(0, 0.11, label.shape), rng.normal(0, 0.1, label.shape)
        found = bootstrap_paired_mse(first, second, label, np.arange(80), resamples=400, seed=seed)["valence"]
        above += found.high >= 0.11**2 - 0.1**2
    assert 0.90 <= above / 300 <= 0.98


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_is_refused(bad: float) -> None:
    first, second, label, group = rows()
    second[5, 0] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        bootstrap_paired_mse(first, second, label, group)

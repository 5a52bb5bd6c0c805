"""The bootstrap's memory: blocks of resamples and of pairs, whose results are those of one whole array."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmva.affect import matching_score
from mmva.evaluation import bootstrap as module
from mmva.evaluation.bootstrap import bootstrap, bootstrap_matching, bootstrap_mean, bootstrap_paired_mse
from mmva.evaluation.metrics import PAIRED_ROWS, sample_rows


def points(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 0.9, (rows, 2))


FIRST, SECOND, LABEL = (points(120, seed) for seed in range(3))
SONG = np.arange(120) // 4
CALLS: list[Callable[[], Any]] = [
    lambda: bootstrap(FIRST, LABEL, SONG),
    lambda: bootstrap_mean(FIRST[:, 0], SONG),
    lambda: bootstrap_paired_mse(FIRST, SECOND, LABEL, SONG),
    lambda: bootstrap_matching(FIRST, SECOND, LABEL, LABEL, groups_a=SONG, groups_b=np.arange(120) // 10),
]


@pytest.mark.parametrize("call", CALLS)
def test_small_blocks_change_nothing(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = call()
    monkeypatch.setattr(module, "_BLOCK", 2_000)
    np.testing.assert_allclose(_numbers(call()), _numbers(whole), rtol=0, atol=1e-12)


def _numbers(found: Any) -> list[float]:
    if isinstance(found, dict):
        return [number for value in found.values() for number in _numbers(value)]
    return [*vars(found).values()] if hasattr(found, "first") else list(found)


def test_matching_is_the_weighted_mean_over_the_pairs_of_drawn_groups() -> None:
    """Against the errors of all pairs at once; groups of one side lie apart, not side by side."""
    a, b, label_a, label_b = points(30, 3), points(40, 4), points(30, 5), points(40, 6)
    group_a, group_b = np.arange(30) % 7, np.arange(40) % 9
    found = bootstrap_matching(a, b, label_a, label_b, groups_a=group_a, groups_b=group_b, resamples=40, confidence=1.0)
    error_NM = np.square(
        matching_score(a[:, None], b[None], 0.380699) - matching_score(label_a[:, None], label_b[None], 0.380699)
    )
    means = []
    rngs = np.random.default_rng(0), np.random.default_rng(1)
    for _ in range(40):
        weight_N, weight_M = (
            np.bincount(rng.integers(size, size=size), minlength=size)[group]
            for rng, size, group in zip(rngs, (7, 9), (group_a, group_b), strict=True)
        )
        means.append(weight_N @ error_NM @ weight_M / (weight_N.sum() * weight_M.sum()))
    assert found == pytest.approx((min(means), max(means)), rel=1e-5)


def test_memory_grows_with_the_groups_and_not_with_groups_times_resamples() -> None:
    """20,000 groups x 1,000 resamples of float64 would be 160 MB, and pairs of groups 3.2 GB."""
    value_N = points(20_000, 7)[:, 0]
    tracemalloc.start()
    bootstrap_mean(value_N, np.arange(20_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 90e6


@pytest.mark.parametrize("rows", [1, PAIRED_ROWS, PAIRED_ROWS + 1, 100_000])
def test_a_sample_has_every_row_up_to_its_size_and_no_row_twice(rows: int) -> None:
    drawn = sample_rows(rows)
    assert len(drawn) == min(rows, PAIRED_ROWS) == len(set(drawn.tolist()))
    assert drawn.max() < rows
    assert np.array_equal(drawn, sample_rows(rows))

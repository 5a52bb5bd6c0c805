"""Confidence intervals by resampling whole groups (songs, images): clips of one song are not independent.

Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Each group's sums are
computed once; a resample is a weighted sum of them. Resamples are drawn in blocks, so memory grows with the number of
groups, not with groups times resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.affect import DEFAULT_SIGMA, matching_score
from mmva.evaluation.metrics import VA_METRICS, checked_pair, from_moments, item_moments
from mmva.modalities import AXES

Interval = tuple[float, float]
_BLOCK: Final = 4_000_000  # numbers in a block of weights or pair errors: 32 MB
_DRAWN: Final = 100_000  # groups drawn at a time


def bootstrap(
    pred_N2: ArrayLike,
    label_N2: ArrayLike,
    groups: Sequence[object] | NDArray[np.generic],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """Percentile intervals of va_metrics per axis and metric, which contain `confidence` of the resamples.

    `groups` [N] are the items' groups, which are resampled as a whole, with replacement. Returns
    {"valence": {"mse": (low, high), ...}, "arousal": {...}}; NaN if the metric is NaN in every resample.
    """
    pred, label = checked_pair(pred_N2, label_N2)
    sums_GK = _group_sums(item_moments(pred, label).reshape(len(pred), -1), groups)
    values = from_moments(_totals(sums_GK, resamples, seed).reshape(resamples, 2, -1))
    return {
        axis: {name: _interval(values[name][:, i], confidence) for name in VA_METRICS} for i, axis in enumerate(AXES)
    }


def bootstrap_mean(
    values_N: ArrayLike,
    groups: Sequence[object] | NDArray[np.generic],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a mean; see bootstrap_means."""
    named = bootstrap_means({"mean": values_N}, groups, resamples=resamples, confidence=confidence, seed=seed)
    return named["mean"]


def bootstrap_means(
    values: Mapping[str, ArrayLike],
    groups: Sequence[object] | NDArray[np.generic],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of the means of named arrays [N], such as retrieval_per_query's, from one resampling."""
    columns = np.column_stack([*values.values(), np.ones(len(groups))]).astype(np.float64)
    totals_RK = _totals(_group_sums(columns, groups), resamples, seed)
    means_RK = totals_RK[:, :-1] / totals_RK[:, -1:]
    return {name: _interval(means_R, confidence) for name, means_R in zip(values, means_RK.T, strict=True)}


@dataclass(frozen=True)
class PairedDifference:
    """Two models' MSE on the same rows; `low` to `high` is the interval of first - second."""

    first: float
    second: float
    low: float
    high: float
    groups: int  # number of groups that were resampled


def bootstrap_paired_mse(
    first_N2: ArrayLike,
    second_N2: ArrayLike,
    label_N2: ArrayLike,
    groups: Sequence[object] | NDArray[np.generic],
    *,
    resamples: int = 1000,
    confidence: float = 0.9,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """Percentile interval of MSE(first) - MSE(second) by axis and for their "mean", from the same resamples for both.

    With a confidence of 0.9, `high` is the one-sided upper 95 % bound. Raises ValueError for shapes that differ, no
    rows, or values that are not finite.
    """
    first, label = checked_pair(first_N2, label_N2)
    second, _ = checked_pair(second_N2, label_N2)
    first_N3, second_N3 = _errors_and_mean(first, label), _errors_and_mean(second, label)
    sums_G4 = _group_sums(np.column_stack([first_N3 - second_N3, np.ones(len(label))]), groups)
    totals_R4 = _totals(sums_G4, resamples, seed)
    differences_R3 = totals_R4[:, :3] / totals_R4[:, 3:]
    return {
        name: PairedDifference(
            float(first_N3[:, i].mean()),
            float(second_N3[:, i].mean()),
            *_interval(differences_R3[:, i], confidence),
            groups=len(sums_G4),
        )
        for i, name in enumerate((*AXES, "mean"))
    }


def _errors_and_mean(pred_N2: NDArray[np.float64], label_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    errors_N2 = np.square(pred_N2 - label_N2)
    return np.column_stack([errors_N2, errors_N2.mean(axis=1)])


def bootstrap_matching(
    pred_a_N2: ArrayLike,
    pred_b_M2: ArrayLike,
    label_a_N2: ArrayLike,
    label_b_M2: ArrayLike,
    *,
    groups_a: Sequence[object] | NDArray[np.generic],
    groups_b: Sequence[object] | NDArray[np.generic],
    sigma: float = DEFAULT_SIGMA,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of matching_mse over all N x M pairs, resampling the groups of both sides.

    If both sides have the same groups (clips and their captions), they are resampled together. Time grows with N x M,
    and memory with the pairs of groups: sample large sides first (metrics.sample_rows).
    """
    pred_a, label_a = checked_pair(pred_a_N2, label_a_N2)
    pred_b, label_b = checked_pair(pred_b_M2, label_b_M2)
    names_a, index_a_N = np.unique(np.asarray(groups_a).astype(str), return_inverse=True)
    names_b, index_b_M = np.unique(np.asarray(groups_b).astype(str), return_inverse=True)
    order_M = np.argsort(index_b_M, kind="stable")  # makes the rows of a group adjacent, for reduceat
    pred_b, label_b = pred_b[order_M], label_b[order_M]
    size_G, size_H = np.bincount(index_a_N), np.bincount(index_b_M)
    first_H = np.concatenate([[0], np.cumsum(size_H)[:-1]])
    error_GH = np.zeros((len(names_a), len(names_b)))
    step = max(1, _BLOCK // (8 * len(pred_b)))
    for start in range(0, len(pred_a), step):
        rows = slice(start, start + step)
        predicted = matching_score(pred_a[rows, None], pred_b[None], sigma)
        error_BM = np.square(predicted - matching_score(label_a[rows, None], label_b[None], sigma))
        np.add.at(error_GH, index_a_N[rows], np.add.reduceat(error_BM, first_H, axis=1))
    together = set(names_a) == set(names_b)
    block = max(1, _BLOCK // max(error_GH.shape))
    draws_a = _weights(len(names_a), resamples, seed, block)
    draws_b = _weights(len(names_b), resamples, seed if together else seed + 1, block)
    means = []
    for weights_BG, weights_BH in zip(draws_a, draws_b, strict=True):
        pairs_B = (weights_BG @ size_G) * (weights_BH @ size_H)
        means.append(((weights_BG @ error_GH) * weights_BH).sum(axis=1) / pairs_B)
    return _interval(np.concatenate(means), confidence)


def _group_sums(items_NK: NDArray[np.float64], groups: Sequence[object] | NDArray[np.generic]) -> NDArray[np.float64]:
    names = np.asarray(groups).astype(str)
    if names.shape != (len(items_NK),):
        raise ValueError(f"groups must have one entry per item: {len(items_NK)} items, groups of shape {names.shape}")
    unique, index_N = np.unique(names, return_inverse=True)
    sums_GK = np.zeros((len(unique), items_NK.shape[1]))
    np.add.at(sums_GK, index_N, items_NK)
    return sums_GK


def _totals(sums_GK: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Sum over the groups of each resample, [R, K]."""
    block = max(1, _BLOCK // len(sums_GK))
    return np.concatenate([weights_BG @ sums_GK for weights_BG in _weights(len(sums_GK), resamples, seed, block)])


def _weights(groups: int, resamples: int, seed: int, block: int) -> Iterator[NDArray[np.float64]]:
    """How often each resample contains each group: arrays [B, G] of at most `block` resamples."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, block):
        weights_BG = np.empty((min(block, resamples - start), groups))
        step = max(1, _DRAWN // groups)
        for part_PG in (weights_BG[first : first + step] for first in range(0, len(weights_BG), step)):
            cell_PG = rng.integers(groups, size=part_PG.shape)  # the same draws as row by row
            cell_PG += groups * np.arange(len(part_PG))[:, None]
            part_PG[:] = np.bincount(cell_PG.ravel(), minlength=part_PG.size).reshape(part_PG.shape)
        yield weights_BG


def _interval(values_R: NDArray[np.float64], confidence: float) -> Interval:
    finite = values_R[np.isfinite(values_R)]
    if len(finite) == 0:
        return (float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return (float(low), float(high))

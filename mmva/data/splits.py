"""Splits and folds by group: sizes count rows, no group is in two parts, and labels are distributed evenly.

Groups are visited along a path through the valence-arousal plane on which neighbors have similar labels. Each goes to
the part that lacks most rows so far, so every section of the path is divided in the requested sizes, which distributes
the labels. Of several random paths, the one with the most even labels is used.

Shapes: N rows, G groups, K parts.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.errors import UsageError

SPLITS: Final = ("train", "val", "test")
SPLIT_SIZES: Final = (0.7, 0.15, 0.15)
_STEPS: Final = 20_000  # groups to visit in all tries together
_MOST_TRIES: Final = 32


def split_groups(
    groups: Sequence[str], va_N2: ArrayLike, sizes: tuple[float, float, float] = SPLIT_SIZES, seed: int = 0
) -> NDArray[np.str_]:
    """Split of each row: "train", "val" or "test", the same for all rows of a group.

    `groups` and finite labels are per row, in any order. `sizes` are the shares of train, val and test and sum to 1.
    Each split has its share of the rows, within the size of the largest group, and at least one group. Raises
    UsageError for invalid sizes, or fewer groups than splits.
    """
    if min(sizes) < 0 or abs(sum(sizes) - 1) > 1e-6:
        raise UsageError(f"split sizes must be >= 0 and sum to 1, got {sizes}")
    return np.array(SPLITS)[_dealt(groups, va_N2, np.asarray(sizes, np.float64), seed, "splits")]


def group_folds(groups: Sequence[str], va_N2: ArrayLike, k: int, seed: int = 0) -> NDArray[np.int64]:
    """Fold of each row, 0 to k - 1. Folds have equally many rows, within the size of the largest group.

    Raises UsageError if k is below 2, or there are fewer groups than folds.
    """
    if k < 2:
        raise UsageError(f"folds: {k} is too few; give at least 2")
    return _dealt(groups, va_N2, np.full(k, 1 / k), seed, "folds")


def fold_splits(groups: Sequence[str], va_N2: ArrayLike, k: int, seed: int = 0) -> list[NDArray[np.str_]]:
    """One split for each fold: the fold is "test"; the other groups are "train", and 15 % of them "val".

    Every row is in "test" once. Raises UsageError for too few groups.
    """
    fold_N, va_N2 = group_folds(groups, va_N2, k, seed), np.asarray(va_N2, np.float64)
    group_N = np.asarray(groups, np.str_)
    found = []
    for fold in range(k):
        rest_N = fold_N != fold
        names_N = np.full(len(group_N), "test", "<U5")
        names_N[rest_N] = split_groups(group_N[rest_N].tolist(), va_N2[rest_N], (0.85, 0.15, 0.0), seed)
        found.append(names_N)
    return found


def leaking_groups(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Sorted groups with rows in more than one split; empty if nothing leaks."""
    splits_of = Counter(group for group, _ in set(zip(groups, splits, strict=True)))
    return sorted(group for group, count in splits_of.items() if count > 1)


def _dealt(
    groups: Sequence[str], va_N2: ArrayLike, share_K: NDArray[np.float64], seed: int, parts: str
) -> NDArray[np.int64]:
    """Part of each row, 0 to K - 1."""
    va_N2 = np.asarray(va_N2, np.float64).reshape(-1, 2)
    if len(va_N2) != len(groups) or not np.isfinite(va_N2).all():
        raise ValueError(f"{parts}: {len(groups)} groups need as many finite labels, got {va_N2.shape}")
    if len(groups) == 0:
        return np.zeros(0, np.int64)
    names_G, group_N = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    if len(names_G) < np.count_nonzero(share_K):
        raise UsageError(f"{len(names_G)} groups are too few for {np.count_nonzero(share_K)} {parts}; add data")
    order_N = np.lexsort((va_N2[:, 1], va_N2[:, 0], group_N))  # so that sums do not depend on the order of the rows
    rows_G = np.bincount(group_N)
    sum_G2, square_G2 = (
        np.stack([np.bincount(group_N[order_N], va_N2[order_N, axis] ** power) for axis in range(2)], axis=1).astype(
            float
        )
        for power in (1, 2)
    )
    tries = int(np.clip(_STEPS // len(names_G), 1, _MOST_TRIES))
    best_G, best = np.zeros(0, np.int64), np.inf
    for rng in np.random.default_rng(seed).spawn(tries):
        part_G = _walk(_path(sum_G2 / rows_G[:, None], rng), rows_G, share_K)
        _fill_empty(part_G, rows_G, share_K)
        _even_out(part_G, rows_G, share_K)
        unevenness = round(_unevenness(part_G, rows_G, sum_G2, square_G2, share_K), 9)
        if unevenness < best:
            best_G, best = part_G, unevenness
    return best_G[group_N]


def _path(va_G2: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Order of the groups: up and down columns of similar valence, random within cells of similar labels."""
    count = len(va_G2)
    across = max(1, round(np.sqrt(count / 4)))  # cells of about four groups
    noise_G2 = rng.random((count, 2))
    rank_G = np.empty(count, np.int64)
    rank_G[np.lexsort((noise_G2[:, 0], va_G2[:, 0]))] = np.arange(count)
    column_G = rank_G * across // count
    cell_G = np.empty(count, np.int64)
    for column in range(across):
        own = np.flatnonzero(column_G == column)
        ranked = own[np.lexsort((noise_G2[own, 0], va_G2[own, 1]))]
        cell = np.arange(len(own)) * across // max(1, len(own))
        cell_G[ranked] = cell if column % 2 == 0 else across - 1 - cell
    return np.lexsort((noise_G2[:, 1], cell_G, column_G))


def _walk(path_G: NDArray[np.int64], rows_G: NDArray[np.int64], share_K: NDArray[np.float64]) -> NDArray[np.int64]:
    """Part of each group: the one that lacks most rows, counted with this group."""
    part_G = np.empty(len(path_G), np.int64)
    lacking_K = np.where(share_K > 0, 0.0, -np.inf)
    for group in path_G:
        lacking_K += share_K * rows_G[group]
        part = int(lacking_K.argmax())
        part_G[group] = part
        lacking_K[part] -= rows_G[group]
    return part_G


def _fill_empty(part_G: NDArray[np.int64], rows_G: NDArray[np.int64], share_K: NDArray[np.float64]) -> None:
    """Move the smallest group of the part with the largest surplus to each empty part that should have rows."""
    for part in np.flatnonzero(share_K > 0):
        if (part_G == part).any():
            continue
        groups_K = np.bincount(part_G, minlength=len(share_K))
        surplus_K = np.where(groups_K > 1, _surplus(part_G, rows_G, share_K), -np.inf)
        own = np.flatnonzero(part_G == surplus_K.argmax())
        part_G[own[rows_G[own].argmin()]] = part


def _even_out(part_G: NDArray[np.int64], rows_G: NDArray[np.int64], share_K: NDArray[np.float64]) -> None:
    """Move small groups from the fullest part to the emptiest until all are within the size of the largest group."""
    largest = rows_G.max()
    for _ in range(len(part_G)):
        surplus_K = np.where(share_K > 0, _surplus(part_G, rows_G, share_K), 0.0)
        if np.abs(surplus_K).max() <= largest:
            return
        own = np.flatnonzero(part_G == surplus_K.argmax())
        if len(own) < 2:
            return
        part_G[own[rows_G[own].argmin()]] = int(surplus_K.argmin())


def _surplus(part_G: NDArray[np.int64], rows_G: NDArray[np.int64], share_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of each part above its share; negative if rows are missing."""
    return np.bincount(part_G, rows_G, minlength=len(share_K)) - share_K * rows_G.sum()


def _unevenness(
    part_G: NDArray[np.int64],
    rows_G: NDArray[np.int64],
    sum_G2: NDArray[np.float64],
    square_G2: NDArray[np.float64],
    share_K: NDArray[np.float64],
) -> float:
    """Deviation of the parts' means and standard deviations from the whole's, and of their sizes from their shares."""
    wanted = np.flatnonzero(share_K > 0)

    def moments(mask_G: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = rows_G[mask_G].sum()
        mean_2 = sum_G2[mask_G].sum(axis=0) / rows
        return mean_2, np.sqrt(np.maximum(square_G2[mask_G].sum(axis=0) / rows - mean_2**2, 0))

    mean_2, spread_2 = moments(np.ones(len(part_G), np.bool_))
    scale_2 = np.maximum(spread_2, 1e-9)
    off = (_surplus(part_G, rows_G, share_K)[wanted] / (share_K[wanted] * rows_G.sum())) ** 2
    total = float(off.sum())
    for part in wanted:
        part_mean_2, part_spread_2 = moments(part_G == part)
        total += float((((part_mean_2 - mean_2) / scale_2) ** 2).sum())
        total += float((((part_spread_2 - spread_2) / scale_2) ** 2).sum())
    return total

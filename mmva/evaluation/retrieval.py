"""Retrieval between two modalities, judged by the labels' matching score, and by mood quadrant as in other systems.

Shapes: Q queries, M gallery items, VA points [., 2].
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.affect import DEFAULT_SIGMA, quadrant
from mmva.evaluation.metrics import checked_pair

_CHUNK_PAIRS = 2_000_000
RECALL_RANKS = (1, 5, 10)
PRECISION_RANKS = (1, 5)
NDCG_RANK = 10


def retrieval_per_query(
    query_va_Q2: ArrayLike,
    gallery_va_M2: ArrayLike,
    query_label_Q2: ArrayLike,
    gallery_label_M2: ArrayLike,
    *,
    sigma: float = DEFAULT_SIGMA,
    recall_ranks: Sequence[int] = RECALL_RANKS,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Rank the gallery by distance of *predicted* points; judge the ranking by the *labels'* matching scores.

    nDCG@k: the item at rank r adds its label score S, divided by log2(r + 1); the sum is divided by that of the ranking
    by S. recall@k: an item is relevant if its S is at least the k-th largest S (ties count as relevant); recall@k is
    the number of relevant items among the first k, divided by k. Both are in [0, 1]; a k above the gallery's size means
    that size. Ties of predicted distance are broken at random (seeded), so a constant prediction scores like a random
    ranking.

    For precision@k and mrr, an item is relevant if its label is in the query's quadrant: the share of relevant items
    among the first k, and 1 / the rank of the first one (0 without one).

    Returns:
        Arrays [Q]: "ndcg@10", "recall@1", "recall@5", "recall@10", "precision@1", "precision@5", "mrr" and, beside
        each, the exact expectation for a random ranking under "random_ndcg@10", ....
    """
    query, query_label = checked_pair(query_va_Q2, query_label_Q2)
    gallery, gallery_label = checked_pair(gallery_va_M2, gallery_label_M2)
    shuffle = np.random.default_rng(seed).permutation(len(gallery))
    gallery, gallery_label = gallery[shuffle], gallery_label[shuffle]
    moods = np.unique(quadrant(np.concatenate([query_label, gallery_label])), return_inverse=True)[1]
    query_mood_Q, gallery_mood_M = np.split(moods, [len(query)])
    step, deepest = max(1, _CHUNK_PAIRS // len(gallery)), min(max(*recall_ranks, NDCG_RANK), len(gallery))
    chunks: list[dict[str, NDArray[np.float64]]] = []
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        predicted_QM = _squared_distances(query[rows], gallery)
        first_QK = _smallest(predicted_QM, deepest)  # all metrics use this ranking
        score_QM = np.exp(-np.sqrt(_squared_distances(query_label[rows], gallery_label)) / sigma)
        by_score = _by_score(score_QM, first_QK, recall_ranks)
        chunks.append(by_score | _by_mood(predicted_QM, first_QK, query_mood_Q[rows], gallery_mood_M))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _by_score(
    score_QM: NDArray[np.float64], first_QK: NDArray[np.int64], recall_ranks: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    size, deepest = score_QM.shape[1], first_QK.shape[1]
    found_QK = np.take_along_axis(score_QM, first_QK, axis=1)
    best_QK = np.take_along_axis(score_QM, _smallest(-score_QM, deepest), axis=1)
    values: dict[str, NDArray[np.float64]] = {}
    k = min(NDCG_RANK, size)
    discount_K = 1 / np.log2(np.arange(2, k + 2))
    ideal_Q = best_QK[:, :k] @ discount_K
    values[f"ndcg@{NDCG_RANK}"] = found_QK[:, :k] @ discount_K / ideal_Q
    values[f"random_ndcg@{NDCG_RANK}"] = score_QM.mean(axis=1) * discount_K.sum() / ideal_Q
    for rank in recall_ranks:
        k = min(rank, size)
        threshold_Q1 = best_QK[:, k - 1 : k]
        values[f"recall@{rank}"] = (found_QK[:, :k] >= threshold_Q1).mean(axis=1)
        values[f"random_recall@{rank}"] = (score_QM >= threshold_Q1).mean(axis=1)
    return values


def _by_mood(
    predicted_QM: NDArray[np.float64],
    first_QK: NDArray[np.int64],
    query_mood_Q: NDArray[np.int64],
    gallery_mood_M: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    size = len(gallery_mood_M)
    same_QK = gallery_mood_M[first_QK] == query_mood_Q[:, None]
    count_Q = np.bincount(gallery_mood_M, minlength=4)[query_mood_Q]
    values: dict[str, NDArray[np.float64]] = {}
    for rank in PRECISION_RANKS:
        values[f"precision@{rank}"] = same_QK[:, :rank].mean(axis=1)
        values[f"random_precision@{rank}"] = count_Q / size
    rank_Q = 1.0 + same_QK.argmax(axis=1)
    late_L = np.flatnonzero(~same_QK.any(axis=1))  # few queries, unless the model is random
    if len(late_L):
        rest_LM = predicted_QM[late_L]
        np.put_along_axis(rest_LM, first_QK[late_L], -np.inf, axis=1)
        same_LM = gallery_mood_M == query_mood_Q[late_L, None]
        nearest_L1 = np.where(same_LM, rest_LM, np.inf).argmin(axis=1)[:, None]
        distance_L1 = np.take_along_axis(rest_LM, nearest_L1, axis=1)
        ahead_LM = (rest_LM < distance_L1) | ((rest_LM == distance_L1) & (np.arange(size) < nearest_L1))
        rank_Q[late_L] = np.where(count_Q[late_L] > 0, 1.0 + ahead_LM.sum(axis=1), np.inf)
    values["mrr"] = 1 / rank_Q
    expected = {int(count): _expected_reciprocal_rank(int(count), size) for count in np.unique(count_Q)}
    values["random_mrr"] = np.array([expected[int(count)] for count in count_Q])
    return values


def _expected_reciprocal_rank(relevant: int, size: int) -> float:
    """Mean of 1 / the rank of the first relevant item, over all orders of `size` items."""
    if relevant == 0:
        return 0.0
    left_R = size - np.arange(size - relevant + 1)  # items left at each rank before the first relevant one
    none_before_R = np.concatenate([[1.0], np.cumprod((left_R - relevant) / left_R)[:-1]])
    return float((none_before_R * relevant / left_R / np.arange(1, len(left_R) + 1)).sum())


def _squared_distances(a_Q2: NDArray[np.float64], b_M2: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.square(a_Q2[:, None, 0] - b_M2[:, 0]) + np.square(a_Q2[:, None, 1] - b_M2[:, 1])


def _smallest(values_QM: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Columns of the k smallest values of each row, in order, [Q, K]."""
    if k == values_QM.shape[1]:
        return np.argsort(values_QM, axis=1, kind="stable")
    columns_QK = np.argpartition(values_QM, k - 1, axis=1)[:, :k]
    order_QK = np.argsort(np.take_along_axis(values_QM, columns_QK, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns_QK, order_QK, axis=1)

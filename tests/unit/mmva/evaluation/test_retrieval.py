"""Graded retrieval: by hand on a small gallery, at its extremes, and against chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmva.affect import matching_score, quadrant
from mmva.evaluation import retrieval as module
from mmva.evaluation.retrieval import retrieval_per_query


def points(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 2))


def retrieval(*points_of_both: np.ndarray, **options: Any) -> dict[str, float]:
    """Means over the queries."""
    return {name: float(values.mean()) for name, values in retrieval_per_query(*points_of_both, **options).items()}


def test_perfect_predictions_score_one() -> None:
    query, gallery = points(20, 1), points(50, 2)
    values = retrieval(query, gallery, query, gallery)
    assert [values[name] for name in ("ndcg@10", "recall@1", "recall@5", "recall@10")] == pytest.approx([1.0] * 4)
    assert values["random_recall@5"] == pytest.approx(5 / 50)


def test_ndcg_is_scikit_learns() -> None:
    from sklearn.metrics import ndcg_score  # here, not above: a second a process

    query, gallery, query_label, gallery_label = (points(n, s) for n, s in ((15, 1), (40, 2), (15, 3), (40, 4)))
    gains = matching_score(query_label[:, None], gallery_label[None], 0.3)
    closeness = -np.linalg.norm(query[:, None] - gallery[None], axis=-1)
    ours = retrieval(query, gallery, query_label, gallery_label, sigma=0.3)
    assert ours["ndcg@10"] == pytest.approx(ndcg_score(gains, closeness, k=10), rel=1e-9)


def test_recall_by_hand() -> None:
    query = query_label = np.array([[0.0, 0.0]])
    gallery_label = np.array([[0.1, 0], [0.2, 0], [0.3, 0], [0.4, 0]])
    gallery = np.array([[0.3, 0], [0.1, 0], [0.2, 0], [0.4, 0]])  # predicted order: 1, 2, 0, 3
    values = retrieval(query, gallery, query_label, gallery_label, recall_ranks=(1, 2, 3, 9))
    assert values["recall@1"] == 0
    assert values["recall@2"] == 0.5
    assert values["recall@3"] == 1
    assert values["recall@9"] == 1


def test_tied_labels_all_count_as_best() -> None:
    query = np.array([[0.0, 0.0]])
    gallery = np.array([[0.1, 0], [0.2, 0], [0.3, 0]])
    labels = np.array([[0.5, 0], [0.5, 0], [0.9, 0]])
    values = retrieval(query, gallery, query, labels, recall_ranks=(1,))
    assert values["recall@1"] == 1
    assert values["random_recall@1"] == pytest.approx(2 / 3)


def test_constant_predictions_get_what_chance_gets_even_on_a_sorted_gallery() -> None:
    query_label, gallery_label = points(400, 1), points(300, 2)
    gallery_label = gallery_label[np.argsort(gallery_label[:, 0])]
    nothing = [np.full((n, 2), 0.5) for n in (400, 300)]
    runs = [retrieval(*nothing, query_label, gallery_label, seed=seed) for seed in range(40)]
    for name in ("ndcg@10", "recall@10"):
        assert np.mean([run[name] for run in runs]) == pytest.approx(runs[0][f"random_{name}"], rel=0.1)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [points(n, s) for n, s in ((30, 1), (25, 2), (30, 3), (25, 4))]
    whole = retrieval_per_query(*arguments)
    monkeypatch.setattr(module, "_CHUNK_PAIRS", 60)
    for name, values in retrieval_per_query(*arguments).items():
        assert values.shape == (30,)
        np.testing.assert_allclose(values, whole[name])


def test_precision_and_reciprocal_rank_by_hand() -> None:
    query, query_label = np.array([[0.5, 0.5]]), np.array([[0.9, 0.9]])
    gallery = np.array([[0.5, 0.6], [0.5, 0.7], [0.5, 0.8], [0.5, 0.9]])
    gallery_label = np.array(
        [[0.1, 0.1], [0.8, 0.8], [0.1, 0.9], [0.7, 0.9]]
    )  # 2nd and 4th are of the query's quadrant
    values = retrieval(query, gallery, query_label, gallery_label)
    assert (values["precision@1"], values["precision@5"], values["mrr"]) == (0.0, 0.5, 0.5)
    assert values["random_precision@1"] == 0.5
    assert values["random_mrr"] == pytest.approx((1 * 12 + 1 / 2 * 8 + 1 / 3 * 4) / 24)  # of the 24 orders
    nobody = retrieval(query, gallery[:1], query_label, gallery_label[:1])
    assert (nobody["mrr"], nobody["random_mrr"], nobody["precision@5"]) == (0.0, 0.0, 0.0)


def test_a_rank_beyond_the_ten_first_is_that_of_the_whole_order() -> None:
    query, gallery, query_label, gallery_label = (points(n, s) for n, s in ((60, 1), (40, 2), (60, 3), (40, 4)))
    gallery_label[3:] *= 0.49  # three items of the 40 are in other quadrants
    same = quadrant(query_label)[:, None] == quadrant(gallery_label)
    order = np.argsort(np.linalg.norm(query[:, None] - gallery[None], axis=-1), axis=1)
    hits = np.take_along_axis(same, order, axis=1)
    expected = np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0.0)
    assert ((expected > 0) & (expected < 0.1)).sum() > 5
    np.testing.assert_allclose(retrieval_per_query(query, gallery, query_label, gallery_label)["mrr"], expected)


def test_constant_predictions_rank_moods_as_chance_does() -> None:
    query_label, gallery_label = points(300, 1), points(30, 2)
    nothing = [np.full((n, 2), 0.5) for n in (300, 30)]
    runs = [retrieval(*nothing, query_label, gallery_label, seed=seed) for seed in range(60)]
    for name in ("precision@5", "mrr"):
        assert np.mean([run[name] for run in runs]) == pytest.approx(runs[0][f"random_{name}"], rel=0.1)

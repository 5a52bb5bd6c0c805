"""Likeness by cosine: what sorting all of them gives, however they are cut into blocks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmva.zeroshot import likeness
from mmva.zeroshot.likeness import most_alike


@given(
    count=st.integers(0, 60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    wanted=st.integers(1, 70),
    seed=st.integers(0, 10**6),
)
def test_the_most_alike_are_those_of_a_sort(count: int, cuts: list[int], wanted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    emb_ND = rng.integers(-2, 3, (count, 3)).astype(np.float32)  # many are equal, some are nothing but zeros
    query_D = rng.integers(-2, 3, 3)
    row_N = np.arange(count) * 7
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    blocks = [(row_N[start:stop], emb_ND[start:stop]) for start, stop in pairwise(edges)]
    row_K, cosine_K = most_alike(query_D, blocks, wanted)
    lengths_N = np.linalg.norm(emb_ND, axis=1) * np.linalg.norm(query_D)
    cosine_N = np.array(
        [emb @ query_D / length if length else 0.0 for emb, length in zip(emb_ND, lengths_N, strict=True)]
    )
    np.testing.assert_allclose(cosine_K, -np.sort(-cosine_N)[:wanted], atol=1e-9)
    at_K = row_K // 7
    assert len(set(at_K)) == len(at_K)
    np.testing.assert_allclose(cosine_N[at_K], cosine_K, atol=1e-9)
    for one, other in pairwise(at_K):
        assert one < other or not (emb_ND[one] == emb_ND[other]).all()


def test_length_does_not_matter() -> None:
    emb_4D = np.array([[3, 4], [0.3, 0.4], [4, 3], [6, 8]], np.float32)
    row_K, cosine_K = most_alike([30, 40], [(np.array([9]), emb_4D[3:]), (np.arange(3), emb_4D[:3])], 3)
    assert set(row_K.tolist()) == {0, 1, 9}
    np.testing.assert_allclose(cosine_K, 1)


def test_a_late_page_is_not_sorted_again_for_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    best, sorts = likeness._best, []
    monkeypatch.setattr(likeness, "_best", lambda *given: sorts.append(1) or best(*given))
    emb_ND = np.random.default_rng(0).normal(size=(6000, 3))
    blocks = [(np.arange(start, start + 50), emb_ND[start : start + 50]) for start in range(0, 6000, 50)]
    row_K, _ = most_alike([1, 0, 0], blocks, 1000)
    assert len(row_K) == 1000
    assert len(sorts) < 10  # of 120 blocks

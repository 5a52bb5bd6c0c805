"""The VA-matched sampler: pure, exhaustive, flat where it promises to be, the same for any number of workers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from mmva.affect import matching_score
from mmva.errors import UsageError
from mmva.matching import STRATEGIES, EpochPlan, batches, epoch_plan, score_histogram
from mmva_platform.training.loop.data import Pairing, partners

sizes = st.integers(1, 300)


def labels(count: int, seed: int, spread: float = 0.16) -> np.ndarray:
    """Points about the middle of the plane, spread like IMEMNet's labels."""
    return np.random.default_rng(seed).normal(0.5, spread, (count, 2)).clip(0, 1)


def plan_of(pairs: int) -> EpochPlan:
    return EpochPlan(np.arange(pairs), np.arange(pairs), np.full(pairs, 0.5))


@settings(max_examples=40, deadline=None)
@given(
    images=sizes,
    clips=sizes,
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 50),
    strategy=st.sampled_from(STRATEGIES),
)
def test_every_item_at_most_once_with_the_labels_own_score(
    images: int, clips: int, seed: int, epoch: int, strategy: str
) -> None:
    image_va, music_va = labels(images, 1), labels(clips, 2)
    plan = epoch_plan(image_va, music_va, seed=seed, epoch=epoch, strategy=strategy)
    assert len(plan) == len(plan.image_index_P) == len(plan.music_index_P) == min(images, clips)
    for index, count in ((plan.image_index_P, images), (plan.music_index_P, clips)):
        assert len(np.unique(index)) == len(index)
        assert index.min() >= 0
        assert index.max() < count
    scores = matching_score(image_va[plan.image_index_P], music_va[plan.music_index_P])
    np.testing.assert_array_equal(plan.target_P, scores)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_plan_depends_on_seed_and_epoch_and_nothing_else(strategy: str) -> None:
    image_va, music_va = labels(500, 1), labels(600, 2)

    def draw(seed: int, epoch: int) -> EpochPlan:
        return epoch_plan(image_va, music_va, seed=seed, epoch=epoch, strategy=strategy)

    first, again = draw(3, 4), draw(3, 4)
    np.testing.assert_array_equal(first.image_index_P, again.image_index_P)
    np.testing.assert_array_equal(first.music_index_P, again.music_index_P)
    for other in (draw(3, 5), draw(4, 4), draw(4, 3)):
        assert (first.image_index_P != other.image_index_P).mean() > 0.9
        assert not np.array_equal(first.target_P, other.target_P)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_larger_side_is_seen_whole_over_the_epochs(strategy: str) -> None:
    image_va, music_va = labels(40, 1), labels(160, 2)
    plans = [epoch_plan(image_va, music_va, seed=0, epoch=e, strategy=strategy) for e in range(60)]
    seen = np.bincount(np.concatenate([plan.music_index_P for plan in plans]), minlength=160)
    assert seen.min() >= 1
    assert abs(seen.mean() - 15) < 1e-9


def distance_to_flat(plan: EpochPlan) -> float:
    """Total variation distance of the histogram of targets to the uniform one."""
    return 0.5 * float(np.abs(score_histogram(plan.target_P) / len(plan) - 0.1).sum())


def assert_matched_is_flatter(image_va: np.ndarray, music_va: np.ndarray) -> None:
    random, matched = (epoch_plan(image_va, music_va, seed=0, epoch=0, strategy=s) for s in ("random", "matched"))
    assert distance_to_flat(matched) < 0.6 * distance_to_flat(random)
    assert (random.target_P > 0.9).mean() < 0.03
    assert (matched.target_P > 0.9).mean() > 0.07


def test_matched_targets_are_flatter_than_random_ones() -> None:
    assert_matched_is_flatter(labels(6000, 1, 0.2), labels(7000, 2, 0.15))


def test_matched_targets_are_flatter_on_the_real_labels(imemnet_dir) -> None:
    images = pd.read_csv(imemnet_dir / "image_va.csv")
    images = images[~images["img"].duplicated(keep=False)][["valence", "arousal"]].to_numpy()
    music = pd.read_csv(imemnet_dir / "music_va_known.csv")[["valence", "arousal"]].to_numpy()
    assert_matched_is_flatter(images, np.resize(music, (25944, 2)))


def test_matched_order_carries_no_trend() -> None:
    plan = epoch_plan(labels(6000, 1), labels(7000, 2), seed=0, epoch=0, strategy="matched")
    assert abs(np.corrcoef(np.arange(len(plan)), plan.target_P)[0, 1]) < 0.06


@settings(max_examples=60, deadline=None)
@given(pairs=st.integers(1, 500), batch_size=st.integers(6, 80), world_size=st.sampled_from([1, 2, 3, 4, 6]))
def test_global_batches_are_the_same_for_any_world_size(pairs: int, batch_size: int, world_size: int) -> None:
    alone = batches(plan_of(pairs), batch_size)
    rows = [range(pairs)[part] for part in alone]
    assert [row for part in rows for row in part] == list(range(pairs))
    assert len(alone) == -(-pairs // batch_size)
    assert max(map(len, rows)) <= batch_size
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    ranks = [batches(plan_of(pairs), batch_size, rank, world_size) for rank in range(world_size)]
    for step, whole in enumerate(alone):
        parts = [range(pairs)[rank[step]] for rank in ranks]
        assert [row for part in parts for row in part] == list(range(pairs)[whole])
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert {len(rank) for rank in ranks} == {len(alone)}


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 120),
    sides=st.tuples(st.integers(0, 120), st.integers(0, 120), st.integers(0, 60)),
    strategy=st.sampled_from(STRATEGIES),
    batch_size=st.integers(6, 40),
)
def test_any_world_size_trains_the_same_items_each_at_most_once_an_epoch_and_modality(
    images: int, sides: tuple[int, int, int], strategy: str, batch_size: int
) -> None:
    """With clips that have no caption and captions that have no clip, as they come."""
    clips, captions, shared = sides
    assume(clips + captions > 0)
    both = min(clips, captions, shared)
    ids = {"music": np.array([f"m{n}" for n in range(clips)])}
    ids["caption"] = np.array([*ids["music"][:both], *(f"t{n}" for n in range(captions - both))])
    rows, first = partners({name: found for name, found in ids.items() if len(found)})
    count = len(next(iter(rows.values())))
    assert count == clips + captions - both == sum(map(len, first.values()))
    plan = epoch_plan(labels(images, 1), labels(count, 2), seed=3, epoch=1, strategy=strategy)
    pairing = Pairing(labels(images, 1), labels(count, 2), rows)

    def steps(world_size: int) -> list[dict[str, list[int]]]:
        ranks = [batches(plan, batch_size, rank, world_size) for rank in range(world_size)]
        taken = []
        for parts in zip(*ranks, strict=True):
            step: dict[str, list[int]] = {modality: [] for modality in pairing.modalities}
            for part in parts:
                for modality in pairing.modalities:
                    own = pairing.rows(modality, plan.image_index_P[part], plan.music_index_P[part])
                    step[modality] += own[own >= 0].tolist()
            taken.append(step)
        return taken

    alone = steps(1)
    for modality in pairing.modalities:
        used = [row for step in alone for row in step[modality]]
        assert len(used) == len(set(used))
    for world_size in (2, 3, 4, 6):
        assert steps(world_size) == alone


@settings(max_examples=15, deadline=None)
@given(bins=st.integers(2, 5), seed=st.integers(0, 1000))
def test_the_histogram_is_flat_where_labels_allow(bins: int, seed: int) -> None:
    """Labels over the whole plane, so that low scores exist; half of all pairs score less than .27."""
    rng = np.random.default_rng(seed)
    image_va, music_va = rng.random((3000, 2)), rng.random((3000, 2))
    plan = epoch_plan(image_va, music_va, seed=seed, epoch=0, strategy="matched")
    found = score_histogram(plan.target_P, bins) / len(plan)
    assert np.abs(found - 1 / bins).sum() <= 0.25
    for got, low in zip(found, np.linspace(0, 1, bins, endpoint=False), strict=True):
        if low >= 0.25:
            assert got == pytest.approx(1 / bins, abs=0.12)


def test_random_is_the_papers_any_image_with_any_clip() -> None:
    """Its targets are distributed as those of all pairs, and nothing about them depends on the labels' order."""
    image_va, music_va = labels(3000, 1), labels(3000, 2)
    plan = epoch_plan(image_va, music_va, seed=0, epoch=0, strategy="random")
    every = matching_score(image_va[:500, None], music_va[None, :500]).ravel()
    assert stats.ks_2samp(plan.target_P, every).pvalue > 0.01
    moved = epoch_plan(np.flip(image_va), np.flip(music_va), seed=0, epoch=0, strategy="random")
    np.testing.assert_array_equal(plan.image_index_P, moved.image_index_P)
    np.testing.assert_array_equal(plan.music_index_P, moved.music_index_P)


def test_histogram_counts_every_score_once() -> None:
    np.testing.assert_array_equal(score_histogram([0.05, 0.1, 0.55, 1.0], bins=10), [1, 1, 0, 0, 0, 1, 0, 0, 0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "nearest"}, "unknown 'nearest'"),
        ({"image_va_N2": np.empty((0, 2))}, "image labels: expected"),
        ({"music_va_M2": [[0.5, np.nan]]}, "music labels: contain NaN"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {"image_va_N2": labels(5, 1), "music_va_M2": labels(5, 2), "seed": 0, "epoch": 0} | change
    with pytest.raises(UsageError, match=message):
        epoch_plan(**arguments)


def test_batch_smaller_than_the_world_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="batch_size: 3"):
        batches(plan_of(10), 3, rank=0, world_size=4)

"""The split by clip: dealt clip by clip, captions with their clips, and only ever beside the honest figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmva.imemnet.splits import LEAKAGE_WARNING
from mmva_platform.datasets.features import Features, ModalityFeatures
from mmva_platform.training.evaluation.evaluate import Evaluation, evaluate_model
from mmva_platform.training.evaluation.leakage import beside_clip_split, by_clip
from mmva_platform.training.loop.in_process import train_here
from mmva_platform.training.recipe import Recipe

SONGS, CLIPS = 40, 6
DIMS = {"image": 6, "music": 24, "caption": 8}


@pytest.fixture(scope="module")
def features() -> Features:
    """Songs have their own label, which their embedding names without telling anything of other songs' labels."""
    rng = np.random.default_rng(0)
    song_va = rng.uniform(0.1, 0.9, (SONGS, 2))
    song_emb = rng.normal(size=(SONGS, DIMS["music"]))
    song = np.repeat(np.arange(SONGS), CLIPS)
    split = np.where(song < 28, "train", np.where(song < 34, "val", "test"))

    def rows(emb: Any, va: Any, ids: list[str], of: Any, splits: Any) -> ModalityFeatures:
        return ModalityFeatures(np.array(ids), emb.astype(np.float32), va, splits, np.array([str(g) for g in of]))

    noise = rng.normal(0, 0.05, (len(song), DIMS["music"]))
    ids = [f"{g}-{k}" for g, k in zip(song, np.tile(np.arange(CLIPS), SONGS), strict=True)]
    image_split = np.repeat(["train", "val", "test"], [100, 30, 30])
    image_va = rng.uniform(0.2, 0.8, (160, 2))
    modalities: dict[Any, ModalityFeatures] = {
        "image": rows(rng.normal(size=(160, 6)), image_va, [f"i{n}" for n in range(160)], range(160), image_split),
        "music": rows(song_emb[song] + noise, song_va[song], ids, song, split),
        "caption": rows(rng.normal(size=(len(song), 8)), song_va[song], ids, song, split),
    }
    return Features("data", "d" * 64, dict.fromkeys(DIMS, "f" * 64), {}, (), modalities)


def recipe() -> Recipe:
    return Recipe.model_validate({"dataset": "data", "epochs": 3, "batch_size": 32, "model": {"hidden": 0}})


def test_as_many_clips_to_each_split_and_captions_with_their_clips(features: Features) -> None:
    dealt = by_clip(features, seed=1)
    music, caption = dealt["music"], dealt["caption"]
    for name in ("train", "val", "test"):
        assert (music.split == name).sum() == (features["music"].split == name).sum()
    np.testing.assert_array_equal(caption.split, music.split)
    np.testing.assert_array_equal(dealt["image"].split, features["image"].split)
    both = {name: set(music.group[music.split == name]) for name in ("train", "test")}
    assert len(both["train"] & both["test"]) > 20, "songs stand on both sides"
    assert dealt.warnings == (LEAKAGE_WARNING,)
    np.testing.assert_array_equal(by_clip(features, seed=1)["music"].split, music.split)


def test_the_leaking_figures_stand_beside_the_honest_ones_and_flatter(features: Features) -> None:
    model, history = train_here(recipe(), features)
    assert len(history) == 3
    model.provenance = {"recipe": recipe().model_dump(mode="json")}
    honest = evaluate_model(model, features)
    both = beside_clip_split(honest, model, features)
    assert both.metrics == honest.metrics
    assert both.clip_split is not None
    leaking = Evaluation.from_json(both.clip_split)
    for axis in ("valence", "arousal"):
        honest_r2, leaking_r2 = (of.metrics["music"][axis]["r2"].value for of in (honest, leaking))
        assert leaking_r2 > honest_r2 + 0.5
    text = both.to_markdown()
    assert text.index("Related systems") < text.index("MSE, by clip")
    assert text.count("MSE, song-disjoint") == 1
    assert LEAKAGE_WARNING in text[text.index("For comparison") :]
    assert LEAKAGE_WARNING not in text[: text.index("For comparison")]
    assert Evaluation.from_json(both.to_json()) == both


@pytest.mark.parametrize(
    ("provenance", "warnings", "reason"),
    [
        ({}, (), "does not record its recipe"),
        ({"recipe": {"mode": "media"}}, (), "backbones were tuned"),
        ({"recipe": {"dataset": "data"}}, (LEAKAGE_WARNING,), "itself is split by clip"),
    ],
)
def test_where_nothing_can_stand_beside_it_says_why(
    features: Features, provenance: dict[str, Any], warnings: tuple[str, ...], reason: str
) -> None:
    from dataclasses import replace

    model, _ = train_here(recipe(), features)
    model.provenance = provenance
    told = replace(features, warnings=warnings)
    both = beside_clip_split(evaluate_model(model, told), model, told)
    assert both.clip_split is None
    assert reason in both.warnings[-1]

"""Media mode: every row of the plan once, whoever computes; only chosen layers move; augmentation leaves affect."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mmva.backbones import BackboneSpec, load_encoder, preset
from mmva.errors import CheckFailed, UsageError
from mmva.matching import batches
from mmva_platform.datasets.schema import sha256_of
from mmva_platform.training.checkpoint import random_state, read_state, state_bytes
from mmva_platform.training.loop import Unwatched, World, fit, plan_epoch, train_step
from mmva_platform.training.media.augment import augment_image, augment_music
from mmva_platform.training.media.run import prepare_media
from mmva_platform.training.media.tuned import choose_layers
from mmva_platform.training.recipe import AugmentOptions

CPU = torch.device("cpu")


@pytest.fixture
def start(media_world: ModuleType, tmp_path: Path) -> Any:
    """(recipe changes) -> recipe, state, source, plan of a run on one rank."""

    def begin(**changes: Any) -> tuple[Any, Any, Any, Any]:
        recipe = media_world.recipe_of(**changes)
        plan = media_world.plan_of(tmp_path, recipe)
        state, source = prepare_media(recipe, plan, None, World(), CPU, pipeline=media_world.inline)
        return recipe, state, source, plan

    return begin


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_row_of_the_plan_is_used_once_and_all_ranks_take_the_same_steps(start: Any, size: int) -> None:
    recipe, state, source, _ = start(batch_size=4)
    plan = plan_epoch(source.pairing, recipe, 1)
    steps, seen, images = [], [], Counter()
    requested: list[Any] = []
    decode = source._pipeline
    source._pipeline = lambda decoder, requests: decode(decoder, requested.extend(requests) or requests)
    for rank in range(size):
        shares = batches(plan, recipe.batch_size, rank, size)
        rows = [batch.labels[0]["image"] for batch in source.batches(plan, 1, shares, state.model)]
        steps.append(len(rows))
        seen += [tuple(row.tolist()) for batch in rows for row in batch]
    for request in requested:
        images.update(place.row for place in request.places["image"])
    assert set(steps) == {3}  # 10 pairs in batches of 4
    expected = source.pairing.image_va_N2[plan.image_index_P].astype(np.float32)
    assert sorted(seen) == sorted(tuple(row) for row in expected.tolist())
    assert images == Counter(plan.image_index_P.tolist())
    positions = sorted(position for request in requested for position in request.positions)
    assert positions == list(range(len(plan)))


def gradients(state: Any, batch: Any, recipe: Any) -> dict[str, np.ndarray]:
    taken: dict[str, np.ndarray] = {}

    def keep(*_: Any) -> None:
        taken.update({n: p.grad.numpy().copy() for n, p in state.model.named_parameters() if p.grad is not None})

    state.optimizer.register_step_pre_hook(keep)
    train_step(state, batch, recipe)
    return taken


@pytest.mark.parametrize("media", [{"pieces": 3}, {"recompute": True}, {"pieces": 2, "recompute": True}])
def test_pieces_and_recomputing_change_memory_and_not_the_step(start: Any, media: dict[str, Any]) -> None:
    layers = {"layers": {"image": 1, "music": "all", "caption": 2}}
    found = []
    for options in (layers, layers | media):
        recipe, state, source, _ = start(batch_size=7, media=options)
        plan = plan_epoch(source.pairing, recipe, 0)
        batch = next(iter(source.batches(plan, 0, batches(plan, 7), state.model)))
        assert len(batch.inputs) == options.get("pieces", 1)
        found.append(gradients(state, batch, recipe))
    assert found[0].keys() == found[1].keys()
    assert any(name.startswith("encoders.caption") for name in found[0])
    for name, gradient in found[0].items():
        np.testing.assert_allclose(found[1][name], gradient, rtol=1e-3, atol=1e-7, err_msg=name)


def test_only_the_chosen_layers_move(start: Any) -> None:
    recipe, state, source, _ = start(media={"layers": {"image": 1, "music": 0, "caption": "all"}})
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    fit(state, source, recipe)
    moved = {name for name, value in state.model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("encoders.music") for name in moved)
    assert any(".layers.1." in name for name in moved)
    assert not any(".layers.0." in name or "embeddings" in name for name in moved if "encoders.image" in name)
    assert any("embeddings" in name for name in moved if "encoders.caption" in name)
    assert any(name.startswith("mmva.towers.music") for name in moved)


def test_each_backbone_has_its_own_rate(start: Any) -> None:
    rates = {"image": 1e-3, "music": 2e-4, "caption": 3e-6}
    layers = {"image": 1, "music": 1, "caption": 0}
    _, state, _, _ = start(media={"layers": layers, "lr": rates}, optimizer={"lr": 0.5})
    assert [group["initial_lr"] for group in state.optimizer.param_groups] == [0.5, 1e-3, 2e-4]


def test_more_blocks_than_there_are_is_a_mistake(start: Any) -> None:
    with pytest.raises(UsageError, match=r"media\.layers: 9 of .* 2 blocks"):
        start(media={"layers": {"image": 9, "music": 0, "caption": 0}})
    with pytest.raises(UsageError, match="use 0 or all"):
        choose_layers(torch.nn.Linear(2, 2), 1)


def test_heads_start_as_probes_and_every_modality_needs_its_options(media_world: ModuleType) -> None:
    from mmva_platform.datasets.features import Features, ModalityFeatures
    from mmva_platform.training.media.build import start_heads

    rng = np.random.default_rng(0)
    rows = {
        m: ModalityFeatures(
            np.array([str(n) for n in range(90)]),
            rng.normal(size=(90, 8)).astype(np.float32),
            rng.uniform(size=(90, 2)),
            np.repeat(["train", "val", "test"], 30),
            np.arange(90).astype(str),
        )
        for m in ("image", "music", "caption")
    }
    features = Features("d", "d", {}, {}, (), rows)
    heads = start_heads(features, media_world.recipe_of())
    assert heads.dims == {"image": 8, "music": 8, "caption": 8}
    assert all(penalty > 0 for pair in heads.penalties.values() for penalty in pair)
    assert any(bool(value.any()) for name, value in heads.weights.items() if name.endswith("linear.weight"))
    with pytest.raises(UsageError, match=r"media\.lr: 'caption' is missing"):
        start_heads(features, media_world.recipe_of(media={"layers": {"image": 0, "music": 0}}))


def test_a_media_run_resumed_in_the_middle_of_an_epoch_equals_the_uninterrupted_one(
    start: Any, media_world: ModuleType
) -> None:
    recipe, state, source, plan = start()
    saved = b""

    class SaveAt(Unwatched):
        def after_step(self, state: Any, wishes: Any) -> None:
            nonlocal saved
            if state.step == 4:
                saved = state_bytes(state, World().all(random_state()))

    whole = fit(state, source, recipe, watcher=SaveAt())
    stored = read_state(saved)["model"]
    frozen = {name for name, parameter in state.model.named_parameters() if not parameter.requires_grad}
    assert len(frozen) > 50
    assert not frozen & set(stored), "weights that stay as they were loaded are not in a checkpoint"
    resumed, source = prepare_media(recipe, plan, read_state(saved), World(), CPU, pipeline=media_world.inline)
    assert (resumed.epoch, resumed.done) == (1, 1)
    fit(resumed, source, recipe)
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_validation_measures_as_service_does(start: Any) -> None:
    """Every item once, long clips as the mean over their windows, the same for two ranks' parts."""
    _, state, source, plan = start()
    model = state.average.module
    alone = {m: source._measured(m, model, World()) for m in source._val.items}
    for modality, points in alone.items():
        parts = [source._measured(modality, model, World(rank, 2)) for rank in range(2)]
        np.testing.assert_allclose(np.concatenate(parts), points, atol=1e-6)
        assert len(points) == len(source._val.items[modality])
    from mmva.inference.config import default_preprocessing
    from mmva.inference.pipeline import Pipeline
    from mmva.inference.tables import matrix

    encoder, clip = load_encoder(preset("tiny").specs["music"]), plan.decoder.cache.read(1, 4)
    pipeline = Pipeline(("music",), lambda _: encoder, default_preprocessing({}), lambda *_: clip)
    embedded = pipeline.embed(pa.table({"id": ["clip"], "uri": ["clip"], "modality": ["music"]}))
    expected = model.mmva.predict_embeddings("music", matrix(embedded.rows["embedding"]))
    np.testing.assert_allclose(alone["music"][4], expected[0], atol=1e-5)


def test_a_shard_that_was_changed_is_refused(start: Any) -> None:
    _, _, _, plan = start()
    cache = replace(plan.decoder.cache, folder=plan.decoder.cache.folder / "other")
    path = cache.storage.local_path("image.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckFailed, match="its bytes are not those"):
        cache.read(0, 0)


def test_an_items_draws_depend_on_seed_epoch_and_place_alone(start: Any) -> None:
    _, _, source, plan = start(batch_size=5)
    recipe = source._recipe
    epoch = plan_epoch(source.pairing, recipe, 0)

    def decoded(cut: list[slice], number: int = 0) -> list[np.ndarray]:
        requests = [source._request(epoch, number, share) for share in cut]
        return [item[0]["pixel_values"] for request in requests for item in plan.decoder(request)["image"]]

    whole, halves, other = decoded([slice(0, 8)]), decoded([slice(0, 3), slice(3, 8)]), decoded([slice(0, 8)], 1)
    assert all(np.array_equal(a, b) for a, b in zip(whole, halves, strict=True))
    assert sum(np.array_equal(a, b) for a, b in zip(whole, other, strict=True)) < 3


def test_augmentation_leaves_what_carries_affect() -> None:
    image = Image.new("RGB", (64, 48), (200, 120, 40))
    samples = np.sin(np.arange(16_000) / 20).astype(np.float32)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        changed = augment_image(image, AugmentOptions(), rng)
        assert set(changed.get_flattened_data()) == {(200, 120, 40)}, "neither brightness nor saturation"
        assert changed.width * changed.height >= 0.8 * 64 * 48
        heard = augment_music(samples, 16_000, AugmentOptions(), rng)
        np.testing.assert_array_equal(np.abs(heard), np.abs(samples))  # loudness, pitch and tempo stay
    jittered = augment_image(image, AugmentOptions(brightness=0.5), np.random.default_rng(0))
    assert set(jittered.get_flattened_data()) != {(200, 120, 40)}
    louder = augment_music(samples, 16_000, AugmentOptions(gain_db=6), np.random.default_rng(0))
    assert not np.allclose(np.abs(louder), np.abs(samples))


def test_tuned_layers_make_another_encoder_and_travel_by_their_digest(tmp_path: Path) -> None:
    from safetensors.torch import save

    spec = preset("tiny").specs["image"]
    plain = load_encoder(spec)
    name, weight = next(iter(plain.network.named_parameters()))
    slope = torch.linspace(-1, 1, weight.numel()).reshape(weight.shape)  # a constant would be normalised away
    data = save({name: weight.detach() + slope})
    (tmp_path / "tuned.safetensors").write_bytes(data)
    tuned_spec = replace(spec, tuned=str(tmp_path), tuned_sha256=sha256_of(data))
    tuned = load_encoder(BackboneSpec.from_json(tuned_spec.to_json()))
    assert tuned.fingerprint != plain.fingerprint
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    assert not np.allclose(tuned.encode([image]), plain.encode([image]))
    assert load_encoder(tuned_spec).fingerprint == tuned.fingerprint

    with pytest.raises(UsageError, match="go together"):
        replace(spec, tuned=str(tmp_path))
    with pytest.raises(UsageError, match="does not fit this network"):
        plain.load_tuned({name: torch.zeros(3)})
    (tmp_path / "tuned.safetensors").write_bytes(data[:-4] + b"\0\0\0\1")
    with pytest.raises(UsageError, match="is not the file that its training run wrote"):
        load_encoder(tuned_spec)
    (tmp_path / "tuned.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no tuned\.safetensors"):
        load_encoder(tuned_spec)


@pytest.mark.gpu
def test_bf16_on_a_gpu_takes_nearly_the_steps_of_float32(media_world: ModuleType, tmp_path: Path) -> None:
    losses = {}
    for bf16 in (True, False):
        recipe = media_world.recipe_of(media={"layers": {"image": 1, "music": 1, "caption": 1}, "bf16": bf16})
        plan = media_world.plan_of(tmp_path, recipe)
        device = torch.device("cuda")
        state, source = prepare_media(recipe, plan, None, World(), device, pipeline=media_world.inline)
        assert all(p.dtype == torch.float32 for p in state.model.parameters())
        losses[bf16] = fit(state, source, recipe).history[-1]["loss"]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)

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

from mmva.backbones import BackboneSpec, Encoder, load_encoder, preset
from mmva.errors import CheckFailed, UsageError
from mmva.files import sha256_hex
from mmva.losses import loss_scales
from mmva.matching import batches
from mmva_platform.training.loop.loop import batch_counts, fit, plan_epoch, train_step
from mmva_platform.training.loop.state import World
from mmva_platform.training.media.augment import augment_image, augment_music
from mmva_platform.training.media.dataset import Decoder, default_loaders
from mmva_platform.training.media.items import Place
from mmva_platform.training.media.model import choose_layers
from mmva_platform.training.media.run import prepare_media
from mmva_platform.training.recipe import AugmentOptions

CPU = torch.device("cpu")


@pytest.fixture
def start(media_world: ModuleType, tmp_path: Path) -> Any:
    """(recipe changes) -> recipe, state, source, plan of a run on one rank."""

    def begin(**changes: Any) -> tuple[Any, Any, Any, Any]:
        recipe = media_world.recipe_of(**changes)
        plan = media_world.plan_of(tmp_path, recipe)
        state, source = prepare_media(recipe, plan, None, World(), CPU)
        return recipe, state, source, plan

    return begin


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_row_of_the_plan_is_used_once_and_all_ranks_take_the_same_steps(
    start: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _, source, _ = start(batch_size=4)
    plan = plan_epoch(source.pairing, recipe, 1)
    steps, seen, images = [], [], Counter()
    decode = Decoder.__call__

    def count(decoder: Decoder, modality: str, place: Place, seed: Any) -> Any:
        images.update([place.row] if modality == "image" else [])
        return decode(decoder, modality, place, seed)

    monkeypatch.setattr(Decoder, "__call__", count)
    for rank in range(size):
        shares = batches(plan, recipe.batch_size, rank, size)
        rows = [batch.labels["image"] for (batch,) in source.batches(plan, 1, shares)]
        steps.append(len(rows))
        seen += [tuple(row.tolist()) for batch in rows for row in batch]
    assert set(steps) == {3}  # 10 pairs in batches of 4
    expected = source.pairing.image_va_N2[plan.image_index_P].astype(np.float32)
    assert sorted(seen) == sorted(tuple(row) for row in expected.tolist())
    assert images == Counter(plan.image_index_P.tolist())


@pytest.mark.slow
def test_the_loaders_processes_give_what_this_process_gives_and_live_on(start: Any) -> None:
    recipe, _, here, _ = start(batch_size=4)
    _, _, there, _ = start(batch_size=4, media={"loaders": 2})
    seen: set[int] = set()
    for epoch in (0, 1):
        plan = plan_epoch(here.pairing, recipe, epoch)
        shares = batches(plan, recipe.batch_size)
        for (mine,), (theirs,) in zip(
            here.batches(plan, epoch, shares), there.batches(plan, epoch, shares), strict=True
        ):
            for modality, (rows, groups) in mine.inputs.items():
                assert theirs.inputs[modality][0] == rows
                for (row_G, batch), (row_too_G, batch_too) in zip(groups, theirs.inputs[modality][1], strict=True):
                    assert torch.equal(row_G, row_too_G)
                    assert all(torch.equal(value, batch_too[name]) for name, value in batch.items())
        processes = {worker.pid for worker in there._loader._iterator._workers}
        assert len(processes) == 2
        seen = seen or processes
        assert processes == seen


def test_every_worker_leaves_a_cpu_to_its_training_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, processes, loaders in ((16, 1, 15), (16, 2, 7), (2, 1, 1), (1, 1, 1), (64, 1, 16)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cpus=cpus: set(range(cpus)))
        assert default_loaders(processes) == loaders


def gradients(state: Any, pieces: Any, pairing: Any, recipe: Any) -> dict[str, np.ndarray]:
    taken: dict[str, np.ndarray] = {}

    def keep(*_: Any) -> None:
        taken.update({n: p.grad.numpy().copy() for n, p in state.model.named_parameters() if p.grad is not None})

    state.optimizer.register_step_pre_hook(keep)
    counts_ST = torch.from_numpy(batch_counts(pairing, plan_epoch(pairing, recipe, 0), recipe))
    train_step(state, pieces, loss_scales(counts_ST, recipe.loss)[0].float(), recipe)
    return taken


@pytest.mark.parametrize("media", [{"pieces": 3}, {"recompute": True}, {"pieces": 2, "recompute": True}])
def test_pieces_and_recomputing_change_memory_and_not_the_step(start: Any, media: dict[str, Any]) -> None:
    layers = {"layers": {"image": 1, "music": "all", "caption": 2}}
    found = []
    for options in (layers, layers | media):
        recipe, state, source, _ = start(batch_size=7, media=options)
        plan = plan_epoch(source.pairing, recipe, 0)
        pieces = next(iter(source.batches(plan, 0, batches(plan, 7))))
        assert len(pieces) == options.get("pieces", 1)
        found.append(gradients(state, pieces, source.pairing, recipe))
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
    with pytest.raises(UsageError, match=r"media\.layers: 9 is more than the 2 blocks"):
        start(media={"layers": {"image": 9, "music": 0, "caption": 0}})


# Blocks that train with `layers: 1`, and what else does; real architectures where they are small enough or on "meta".
LAST = {
    "efficientnet": ({"_blocks.15", "_conv_head", "_bn1"}, set()),
    "musicnn": ({"middle.2", "pool_norm", "dense", "dense_norm"}, {"tags", "temporal", "timbral"}),
    "minilm": ({"encoder.layer.5"}, {"encoder.layer.4", "embeddings"}),
    "clip": ({"encoder.layers.1", "post_layernorm", "visual_projection"}, {"encoder.layers.0", "embeddings"}),
    "hubert": ({"encoder.layers.1"}, {"feature_extractor", "encoder.layers.0", "encoder.layer_norm"}),
    "hubert, norm first": ({"encoder.layers.1", "encoder.layer_norm"}, {"feature_extractor", "encoder.layers.0"}),
}


@pytest.mark.parametrize("family", LAST)
def test_the_last_block_is_the_last_block_of_every_family(family: str) -> None:
    kind = {"efficientnet": "image", "musicnn": "music", "minilm": "caption", "clip": "image"}.get(family, "music")
    compact = family in {"efficientnet", "musicnn", "minilm"}
    encoder = load_encoder(preset("compact" if compact else "tiny").specs[kind])  # type: ignore[index]
    if family == "hubert, norm first":
        from transformers import HubertConfig, HubertModel

        values = encoder.network.config.to_dict() | {"do_stable_layer_norm": True}
        encoder.network = HubertModel(HubertConfig(**values))
    choose_layers(encoder, 1)
    trains = {name for name, parameter in encoder.network.named_parameters() if parameter.requires_grad}
    expected, frozen = LAST[family]
    for part in expected:
        assert any(part in name for name in trains), part
    for name in trains:
        assert any(part in name for part in expected), name
        assert not any(name.startswith(part) for part in frozen), name


def test_an_encoder_of_unknown_blocks_trains_all_or_nothing() -> None:
    encoder = load_encoder(preset("tiny").specs["image"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(encoder), "blocks", Encoder.blocks)
        with pytest.raises(UsageError, match="use 0 or all"):
            choose_layers(encoder, 1)
        choose_layers(encoder, "all")
    assert all(parameter.requires_grad for parameter in encoder.network.parameters())


def test_raw_inputs_are_bytes_and_become_what_prepare_makes() -> None:
    image = Image.effect_noise((300, 200), 80).convert("RGB")
    encoder = load_encoder(preset("tiny").specs["image"])
    raw = encoder.raw(image)
    assert raw["pixel_values"].dtype == torch.uint8
    finished = encoder.finish(encoder.collate([raw]))["pixel_values"][0]
    torch.testing.assert_close(finished, encoder.prepare(image)["pixel_values"], atol=1e-5, rtol=0)


def test_heads_start_as_probes_and_every_modality_needs_its_options(media_world: ModuleType) -> None:
    from mmva_platform.datasets.features import Features, ModalityFeatures
    from mmva_platform.training.media.model import start_heads

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
    start: Any,
) -> None:
    recipe, state, source, plan = start()
    saved: dict[str, Any] = {}

    class SaveAt:
        def on_step_end(self, state: Any, row: Any) -> bool:
            del row
            if state.step == 4:
                saved.update(state.state_dict())
            return False

    whole = fit(state, source, recipe, callback=SaveAt())
    frozen = {name for name, parameter in state.model.named_parameters() if not parameter.requires_grad}
    assert len(frozen) > 50
    assert not frozen & (set(saved["model"]) | set(saved["average"]["values"])), "what stays as it was loaded"
    resumed, source = prepare_media(recipe, plan, saved, World(), CPU)
    assert (resumed.epoch, resumed.done) == (1, 1)
    fit(resumed, source, recipe)
    for mine, theirs in zip(whole.average.values, resumed.average.values, strict=True):
        assert torch.equal(mine, theirs)
    assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]


def test_validation_measures_as_service_does(start: Any) -> None:
    """Every item once, long clips as the mean over their windows, the same for two ranks' parts."""
    _, state, source, plan = start()
    model, items = state.model, source.dataset.val.items
    alone = {m: source.measured(m, World()) for m in items}
    for modality, points in alone.items():
        parts = [source.measured(modality, World(rank, 2)) for rank in range(2)]
        np.testing.assert_allclose(np.concatenate(parts), points, atol=1e-6)
        assert len(points) == len(items[modality])
    from mmva.inference.config import default_preprocessing
    from mmva.inference.pipeline import Pipeline
    from mmva.inference.tables import matrix

    encoder, clip = load_encoder(preset("tiny").specs["music"]), plan.cache.read(1, 4)
    pipeline = Pipeline(("music",), lambda _: encoder, default_preprocessing({}), lambda *_: clip)
    embedded = pipeline.embed(pa.table({"id": ["clip"], "uri": ["clip"], "modality": ["music"]}))
    expected = model.mmva.predict_embeddings("music", matrix(embedded.rows["embedding"]))
    np.testing.assert_allclose(alone["music"][4], expected[0], atol=1e-5)


def test_a_shard_that_was_changed_is_refused(start: Any) -> None:
    _, _, _, plan = start()
    cache = replace(plan.cache, scratch=plan.cache.folder / "other")
    path = cache.storage.local_path("image.parquet")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckFailed, match="its bytes are not those"):
        cache.read(0, 0)


def test_an_items_draws_depend_on_seed_epoch_and_place_alone(start: Any) -> None:
    _, _, source, _ = start(batch_size=5)

    def decoded(cut: list[slice], number: int = 0) -> list[torch.Tensor]:
        plan = plan_epoch(source.pairing, source.dataset.recipe, 0)
        pieces = [source.dataset._piece(plan, number, share)[0]["image"] for share in cut]
        return [pixels for _, groups in pieces for _, batch in groups for pixels in batch["pixel_values"]]

    whole, halves, other = decoded([slice(0, 8)]), decoded([slice(0, 3), slice(3, 8)]), decoded([slice(0, 8)], 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    assert sum(torch.equal(a, b) for a, b in zip(whole, other, strict=True)) < 3


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
    tuned_spec = replace(spec, tuned=str(tmp_path), tuned_sha256=sha256_hex(data))
    tuned = load_encoder(BackboneSpec.from_json(tuned_spec.to_json()))
    assert tuned.fingerprint != plain.fingerprint
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    assert not np.allclose(tuned.encode([image]), plain.encode([image]))
    assert load_encoder(tuned_spec).fingerprint == tuned.fingerprint

    with pytest.raises(UsageError, match="set both tuned and tuned_sha256"):
        replace(spec, tuned=str(tmp_path))
    with pytest.raises(UsageError, match="does not fit this network"):
        plain.load_tuned({name: torch.zeros(3)})
    (tmp_path / "tuned.safetensors").write_bytes(data[:-4] + b"\0\0\0\1")
    with pytest.raises(UsageError, match="was changed after training"):
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
        state, source = prepare_media(recipe, plan, None, World(), device)
        assert all(p.dtype == torch.float32 for p in state.model.parameters())
        losses[bf16] = fit(state, source, recipe).history[-1]["loss"]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)

"""The loop itself: it learns, repeats itself, and continues from a checkpoint as if it had never stopped."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from mmva.errors import OperationFailed
from mmva.evaluation.metrics import va_metrics
from mmva_platform.training.loop.loop import Batch, fit, plan_epoch
from mmva_platform.training.loop.state import TrainState, World, build_model, new_state

DROPOUT = {"hidden": 16, "dropout": 0.3, "input_dropout": 0.2}


def start(synthetic: ModuleType, recipe: Any) -> tuple[TrainState, Any]:
    train, val = synthetic.triplets_of(40, 60), synthetic.triplets_of(12, 16, seed=1)
    return new_state(build_model(recipe, train), recipe, train, val), synthetic.source_of(train, val, recipe)


def weights(state: TrainState) -> np.ndarray:
    every = [*state.model.parameters(), *state.average.values]
    return torch.cat([values.detach().flatten() for values in every]).numpy()


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def test_training_learns_the_relation(synthetic: ModuleType) -> None:
    recipe = synthetic.recipe_of(epochs=40, optimizer={"lr": 1e-2})
    state, source = start(synthetic, recipe)
    before = source.validate(state.model, World())

    fit(state, source, recipe)

    after = state.history[-1]
    assert after["val_total"] < 0.2 * before["val_total"]
    assert min(value for name, value in after.items() if name.startswith("val_r2/")) > 0.5
    assert [row["epoch"] for row in state.history] == list(range(40))


@pytest.mark.slow  # 200 epochs
def test_a_linear_tower_from_zero_reaches_the_closed_form(synthetic: ModuleType) -> None:
    """By default towers start as ridge regressions, which would hide a loop that does not learn."""
    penalty = 0.05
    recipe = synthetic.recipe_of(
        epochs=200,
        optimizer={"lr": 1e-2, "ridge": penalty},
        model={"hidden": 0, "clip": 10.0},
        loss={"similarity_weight": 0.0},
    )
    state, source = start(synthetic, recipe)
    untrained = source.validate(state.model, World())
    fit(state, source, recipe)

    train, val = source.pairing, synthetic.triplets_of(12, 16, seed=1)
    for modality, emb_ND in train.emb.items():
        tower, label_N2 = state.model.tower(modality), train.labels()[modality]
        z_ND, z_val_MD = (
            tower.standardise(torch.as_tensor(split.emb[modality])).double().numpy() for split in (train, val)
        )
        mean_2, dim = label_N2.mean(axis=0), emb_ND.shape[1]
        weight_D2 = np.linalg.solve(z_ND.T @ z_ND + penalty * dim * np.eye(dim), z_ND.T @ (label_N2 - mean_2))
        closed = va_metrics(z_val_MD @ weight_D2 + mean_2, val.labels()[modality])
        for axis, figures in closed.items():
            name = f"val_r2/{modality}/{axis}"
            assert untrained[name] < 0.1
            assert state.history[-1][name] > figures["r2"] - 0.02, name


def test_history_tells_the_target_scores(synthetic: ModuleType) -> None:
    state, source = start(synthetic, synthetic.recipe_of(epochs=1))
    row = fit(state, source, synthetic.recipe_of(epochs=1)).history[0]
    assert row["pairs"] == 40
    assert sum(row["target_histogram"]) == 40
    assert 0 < row["target_mean"] < 1
    assert row["loss"] == pytest.approx(
        row["va/image"] + row["va/music"] + row["va/caption"] + (row["sim/image-music"] + row["sim/image-caption"]) / 2
    )


@pytest.mark.parametrize("strategy", ["random", "matched"])
def test_same_seed_gives_the_same_run_and_another_seed_another(synthetic: ModuleType, strategy: str) -> None:
    def run(seed: int) -> TrainState:
        recipe = synthetic.recipe_of(seed=seed, strategy=strategy, model=DROPOUT)
        state, source = start(synthetic, recipe)
        return fit(state, source, recipe)

    first, again, other = run(3), run(3), run(4)
    np.testing.assert_array_equal(weights(first), weights(again))
    assert without_time(first.history) == without_time(again.history)
    assert np.abs(weights(first) - weights(other)).max() > 1e-3


@pytest.mark.parametrize("step", [1, 4, 5, 12, 23, 25])
def test_a_run_resumed_at_any_step_equals_the_uninterrupted_one(synthetic: ModuleType, step: int) -> None:
    recipe = synthetic.recipe_of(epochs=5, model=DROPOUT)
    state, source = start(synthetic, recipe)
    whole = fit(state, source, recipe)

    state, source = start(synthetic, recipe)
    stopped = synthetic.StopAt(step)
    fit(state, source, recipe, callback=stopped)

    resumed, source = start(synthetic, recipe)
    torch.rand(17)  # whatever the new process did before must not matter
    resumed.load_state_dict(stopped.content)
    assert (resumed.epoch, resumed.done, resumed.step) == (step // 5, step % 5, step)
    fit(resumed, source, recipe)

    np.testing.assert_array_equal(weights(resumed), weights(whole))
    assert without_time(resumed.history) == without_time(whole.history)
    assert resumed.step == whole.step == 25


def test_a_clip_without_caption_adds_nothing_to_the_caption_terms(synthetic: ModuleType) -> None:
    recipe = synthetic.recipe_of(epochs=1)
    losses = []
    for filling in (0.0, 1e3):
        state, source = start(synthetic, recipe)
        # The last row stands in for a missing caption; here it is no clip's own.
        data = source.pairing
        data.emb["caption"] = np.vstack([data.emb["caption"], np.full_like(data.emb["caption"][:1], filling)])
        source = synthetic.source_of(data, synthetic.triplets_of(12, 16, seed=1), recipe)
        assert any((batch.inputs["caption"] == filling).all(dim=1).any() for batch in batches_of(source, state, recipe))
        losses.append(fit(state, source, recipe).history[0]["loss"])
    assert losses[0] == losses[1]


def test_loop_leaves_the_labels_and_embeddings_as_they_are(synthetic: ModuleType) -> None:
    recipe = synthetic.recipe_of(epochs=1)
    state, source = start(synthetic, recipe)
    data = source.pairing
    for array in (data.image_va_N2, data.partner_va_M2, *data.partner_rows.values(), *data.emb.values()):
        array.setflags(write=False)  # as Ray's shared memory hands them out
    fit(state, synthetic.source_of(data, data, recipe), recipe)


def test_batches_hold_the_plans_rows_bit_for_bit(synthetic: ModuleType) -> None:
    recipe = synthetic.recipe_of()
    state, source = start(synthetic, recipe)
    plan, data = plan_epoch(source.pairing, recipe, 0), source.pairing
    for step, batch in enumerate(batches_of(source, state, recipe)):
        image_B, partner_B = (index_P[8 * step : 8 * step + 8] for index_P in (plan.image_index_P, plan.music_index_P))
        for modality, emb_KD in data.emb.items():
            row_B = image_B if modality == "image" else data.partner_rows[modality][partner_B]
            np.testing.assert_array_equal(batch.inputs[modality].numpy(), emb_KD[row_B])
            np.testing.assert_array_equal(batch.present[modality].numpy(), row_B >= 0)
            va_B2 = data.image_va_N2[image_B] if modality == "image" else data.partner_va_M2[partner_B]
            np.testing.assert_array_equal(batch.labels[modality].numpy(), va_B2.astype(np.float32))


def batches_of(source: Any, state: TrainState, recipe: Any) -> list[Batch]:
    """The batches, of eight pairs, of the first epoch."""
    plan = plan_epoch(source.pairing, recipe, 0)
    del state
    shares = [slice(8 * step, 8 * step + 8) for step in range(5)]
    return [piece for (piece,) in source.batches(plan, 0, shares)]


def test_the_best_epochs_averaged_weights_are_kept(synthetic: ModuleType) -> None:
    erratic = {"optimizer": {"lr": 0.5}, "schedule": {"kind": "constant"}, "averaging": {"decay": 0.0}}
    recipe = synthetic.recipe_of(epochs=5, **erratic)
    state, source = start(synthetic, recipe)
    fit(state, source, recipe)
    best = min(state.history, key=lambda row: row["val_total"])
    assert state.best is not None
    assert (state.best["epoch"], state.best["value"]) == (best["epoch"] + 1, best["val_total"])
    assert best["epoch"] < 4, "or the last weights would do, too"
    state.model.load_state_dict(state.best["weights"])
    again = source.validate(state.model, World())
    assert again["val_total"] == best["val_total"]


def test_a_run_that_diverges_says_so_in_one_line(synthetic: ModuleType) -> None:
    recipe = synthetic.recipe_of(epochs=4)
    state, source = start(synthetic, recipe)
    next(state.model.parameters()).data[:] = float("nan")
    with pytest.raises(OperationFailed, match=r"diverged: the loss is nan in epoch 1; lower optimizer\.lr"):
        fit(state, source, recipe)
    assert state.best is None

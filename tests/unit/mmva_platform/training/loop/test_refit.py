"""`refit_folds`: at the end towers are trained on validation rows, too; nothing is chosen or calibrated on these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mmva.data.splits import split_groups
from mmva.errors import UsageError
from mmva_platform.datasets.features import Features, ModalityFeatures
from mmva_platform.settings import load_config
from mmva_platform.training.evaluation.evaluate import intervals_from
from mmva_platform.training.evaluation.folds import refit_intervals
from mmva_platform.training.loop import in_process
from mmva_platform.training.loop.features import FeaturesMode
from mmva_platform.training.loop.in_process import refit, train_here
from mmva_platform.training.recipe import Recipe

GROUPS, EACH, DIM = 60, 4, 70
RECIPE = Recipe.model_validate(
    {"dataset": "data", "epochs": 2, "batch_size": 64, "model": {"hidden": 0}, "optimizer": {"lr": 1e-9},
     "refit_folds": 4}
)  # fmt: skip


def made(seed: int, groups: int = GROUPS) -> Features:
    """Labels are the first embedding dimension and a part of the group's own; as many dimensions as overfit."""
    rng = np.random.default_rng(seed)
    group_N = np.repeat(np.arange(groups), EACH)
    emb_ND = rng.normal(size=(len(group_N), DIM))
    emb_ND[:, 1:] += rng.normal(size=(groups, DIM - 1))[group_N]
    va_N2 = np.clip(0.5 + 0.08 * emb_ND[:, :1] + rng.normal(0, 0.08, (groups, 2))[group_N], 0.02, 0.98)
    names = [f"song-{group}" for group in group_N]
    rows = ModalityFeatures(
        np.array([f"{row}" for row in range(len(group_N))]),
        emb_ND.astype(np.float32),
        va_N2,
        split_groups(names, va_N2),
        np.array(names),
    )
    return Features("data", "d" * 64, {"music": "f" * 64}, {}, (), {"music": rows})


def changed(features: Features, split: str) -> Features:
    """Other labels in one split."""
    rows = features["music"]
    va_N2 = np.where((rows.split == split)[:, None], 1 - rows.va_N2, rows.va_N2)
    return replace(features, modalities={"music": replace(rows, va_N2=va_N2)})


def weights(features: Features) -> Any:
    return train_here(RECIPE, features)[0].tower("music").linear.weight.detach().numpy()


def test_towers_start_as_the_ridge_regression_on_training_and_validation_rows_under_the_folds_mean_penalty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, chosen, sizes = made(0), [], []
    start = in_process.start_from_probes

    def spied(model: Any, train: Any, val: Any, penalties: Any = None) -> Any:
        found = start(model, train, val, penalties)
        if penalties is None:
            chosen.append(found["music"])
            sizes.append(len(train.emb["music"]) + len(val.emb["music"]))
        return found

    monkeypatch.setattr(in_process, "start_from_probes", spied)
    model = refit(RECIPE, features, epochs=1)
    music = features["music"]
    known = music.where(music.split != "test")
    assert sizes == [len(known)] * 4, "four folds of training and validation rows, and no test rows"
    tower, mean_2 = model.tower("music"), known.va_N2.mean(axis=0)
    z_ND = tower.standardise(_tensor(known.emb_ND)).numpy()
    for axis in range(2):
        alpha = DIM * np.exp(np.log([each[axis] for each in chosen]).mean())
        ridge = Ridge(alpha=alpha, fit_intercept=False).fit(z_ND, known.va_N2[:, axis] - mean_2[axis])
        slope = mean_2[axis] * (1 - mean_2[axis])
        np.testing.assert_allclose(tower.linear.weight[axis].detach().numpy() * slope, ridge.coef_, atol=2e-5)


def test_validation_rows_are_trained_on_and_test_rows_change_nothing() -> None:
    features = made(0)
    np.testing.assert_array_equal(weights(features), weights(changed(features, "test")))
    assert np.abs(weights(features) - weights(changed(features, "val"))).max() > 0.01


def test_a_refit_has_as_many_epochs_as_validation_found_best() -> None:
    recipe = RECIPE.model_copy(update={"epochs": 4})
    both = [refit(recipe, made(0), epochs).tower("music").linear.weight for epochs in (1, 4)]
    again = refit(recipe, made(0), 4).tower("music").linear.weight
    assert (both[1] == again).all()
    assert (both[0] != again).any()


def test_intervals_of_a_refit_hold_for_new_groups() -> None:
    """Measured on rows that it was trained on they would not: the towers know those."""
    inside, narrow = [], []
    for seed in range(6):
        features = made(seed)
        model, _ = train_here(RECIPE, features)
        test = features.split("test")["music"]
        residual_N2 = np.abs(model.predict_embeddings("music", test.emb_ND) - test.va_N2)
        for widths, found in (
            (refit_intervals(RECIPE, features), inside), (intervals_from(model, features, "val"), narrow)
        ):  # fmt: skip
            found.append((residual_N2 <= [widths["music"]["valence"], widths["music"]["arousal"]]).mean())
    assert np.mean(inside) > 0.88
    assert np.mean(narrow) < 0.8


def test_too_few_groups_are_said_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    features = made(0, groups=6)
    monkeypatch.setattr("mmva_platform.training.loop.features.share_features", lambda *_: {})
    monkeypatch.setattr("mmva_platform.training.loop.features.shared_features", lambda _: features)
    with pytest.raises(UsageError, match="groups are too few for 7 folds"):
        FeaturesMode(RECIPE.model_copy(update={"refit_folds": 7}), None)  # type: ignore[arg-type]


def test_media_mode_has_none() -> None:
    with pytest.raises(UsageError, match="refit_folds: media mode has no refit"):
        load_config(Recipe, None, ["dataset=d", "mode=media", "refit_folds=2"])


def _tensor(array: Any) -> Any:
    import torch

    return torch.from_numpy(array)

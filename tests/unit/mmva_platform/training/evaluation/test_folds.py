"""Folds by group: every row is predicted once, by a model that saw nothing of its group."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmva.errors import UsageError
from mmva_platform.cli.main import run
from mmva_platform.datasets.features import Features, ModalityFeatures
from mmva_platform.training.evaluation.evaluate import Evaluation, evaluate_model
from mmva_platform.training.evaluation.folds import folds_of, predict_folds
from mmva_platform.training.loop.in_process import train_here
from mmva_platform.training.recipe import Recipe, recipe_of

from ....helpers.embedded_dataset import OURS, make_bundle, make_dataset

GROUPS, EACH = 30, 4
RECIPE = Recipe.model_validate(
    {"dataset": "data", "epochs": 2, "batch_size": 32, "workers": 1, "model": {"hidden": 0}, "optimizer": {"lr": 1e-6}}
)


def rows_of(name: str, seed: int) -> ModalityFeatures:
    """Labels follow the first embedding dimension, and a group's own part of them the others."""
    rng = np.random.default_rng(seed)
    group_N = np.repeat(np.arange(GROUPS), EACH)
    own_G2 = rng.normal(0, 0.1, (GROUPS, 2))
    emb_ND = np.column_stack([rng.normal(size=len(group_N)), np.eye(GROUPS)[group_N]]).astype(np.float32)
    va_N2 = np.clip(0.5 + 0.1 * emb_ND[:, :1] + own_G2[group_N], 0.02, 0.98)
    ids = np.array([f"{name}/{row}" for row in range(len(group_N))])
    groups = np.array([f"{name}/{group}" for group in group_N])
    return ModalityFeatures(ids, emb_ND, va_N2, np.full(len(ids), "train", "<U5"), groups)


@pytest.fixture(scope="module")
def features() -> Features:
    modalities: dict[Any, ModalityFeatures] = {
        name: rows_of(name, seed) for seed, name in enumerate(("image", "music"))
    }
    return Features("data", "d" * 64, dict.fromkeys(modalities, "f" * 64), {}, ("a warning",), modalities)


def test_every_row_is_held_out_once_and_its_group_with_it(features: Features) -> None:
    seen = []

    def fit(fold: Features) -> Any:
        for rows in fold.values():
            held_out = set(rows.group[rows.split == "test"])
            assert not held_out & set(rows.group[rows.split != "test"])
        seen.append(fold)
        number = len(seen)
        return SimpleNamespace(dims={"music": 1}, predict_embeddings=lambda _, emb: np.full((len(emb), 2), number))

    rows, constants = predict_folds(fit, features, 5, seed=1)
    assert list(rows) == ["music"], "the model has no other tower"
    fold_N = rows["music"].predicted_N2[:, 0]
    assert np.bincount(fold_N.astype(int), minlength=6)[1:].tolist() == [GROUPS * EACH // 5] * 5
    np.testing.assert_array_equal(rows["music"].ids, features["music"].ids)
    for number, fold in enumerate(seen, 1):
        own = fold["music"]
        np.testing.assert_array_equal(fold_N == number, own.split == "test")
        assert (constants["music"][fold_N == number] == own.va_N2[own.split == "train"].mean(axis=0)).all()


def test_a_recipe_on_folds_learns_what_holds_for_new_groups_and_nothing_of_the_rest(features: Features) -> None:
    found, _ = folds_of(RECIPE, features, 5)
    assert found.rows == {"image": GROUPS * EACH, "music": GROUPS * EACH}
    assert found.groups == {"image": GROUPS, "music": GROUPS}
    assert found.warnings == ("a warning",)
    for modality, axes in found.metrics.items():
        for axis, figures in axes.items():
            # Half of the variance is the groups' own. A model that had seen them would come near 1.
            assert 0.45 < figures["pearson"].value < 0.9
            assert figures["pearson"].low < figures["pearson"].value < figures["pearson"].high
            assert figures["mse"].value < found.floors[modality][axis]
    assert "Split `5 folds by group` of `data`" in found.to_markdown()
    assert Evaluation.from_json(found.to_json()) == found


def test_too_few_groups_and_models_without_a_recipe_are_refused(features: Features) -> None:
    with pytest.raises(UsageError, match="30 groups are too few for 31 folds"):
        folds_of(RECIPE, features, 31)
    with pytest.raises(UsageError, match="does not record its recipe"):
        recipe_of({})
    with pytest.raises(UsageError, match="backbones were tuned"):
        recipe_of({"recipe": {"mode": "media"}})
    assert recipe_of({"recipe": {**RECIPE.model_dump(mode="json"), "of_an_older_version": 1}}) == RECIPE


@pytest.mark.parametrize("towers", [("image",), ("music",), ("caption",), ("music", "caption"), ("image", "caption")])
def test_any_one_or_two_modalities_train(towers: tuple[str, ...]) -> None:
    rows: dict[Any, ModalityFeatures] = {name: rows_of(name, seed) for seed, name in enumerate(towers)}
    features = Features("data", "d" * 64, dict.fromkeys(rows, "f" * 64), {}, (), rows)
    fold = next(features.folds(5))
    model, history = train_here(RECIPE.model_copy(update={"epochs": 3}), fold)
    assert tuple(model.dims) == towers
    assert (history[-1]["val_matching_mse"] > 0) == ("image" in towers and len(towers) > 1)
    found = evaluate_model(model, fold)
    for modality in towers:
        assert found.metrics[modality]["valence"]["pearson"].value > 0.3
    assert len(found.matching) == len(towers) - 1
    assert found.to_markdown()


def test_the_command_line_takes_the_recipe_and_the_backbones_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", OURS)
    bundle = make_bundle(tmp_path / "bundle", OURS, 0, provenance={"recipe": RECIPE.model_dump(mode="json")})
    said = ["--home", str(tmp_path), "evaluate", str(bundle), str(data), "--folds", "3", "--json"]
    assert run(said) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == {"image": 30, "music": 40, "caption": 20}, "every row, whatever its split"
    assert found["split"] == "3 folds by group"
    assert found["metrics"]["image"]["valence"]["pearson"]["value"] > 0.4
    assert run([*said[:5], "--folds", "1"]) == 2

"""Training on a Ray cluster: two workers, a bundle at the end, and a run that continues after Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmva import load_bundle
from mmva.errors import UsageError
from mmva_platform.settings import Settings, load_config
from mmva_platform.training.evaluation import evaluate
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import TrainResult, train

pytestmark = [pytest.mark.system, pytest.mark.slow]
EPOCHS = 6


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def dataset(settings: Settings, ray_cluster: None) -> str:
    """A generated data set, embedded by the tiny backbones."""
    from mmva.imemnet.generator import generate
    from mmva_platform.datasets.embedding import embed_dataset
    from mmva_platform.datasets.importing import ImportConfig, import_dataset

    media, out = settings.home / "media", settings.home / "dataset"
    generate(media, images=60, clips=60, seed=0)
    files = {"images_csv": str(media / "image_va.csv"), "music_csv": str(media / "music_va.csv")}
    import_dataset(ImportConfig(media=str(media), **files), str(out), settings)
    embed_dataset(str(out), "tiny", None, settings)
    return str(out)


def recipe_of(dataset: str, repository: Path, name: str) -> Recipe:
    """The repository's tiny recipe, with dropout: a resumed run needs every rank's random state back."""
    changes = [f"dataset={dataset}", f"name={name}", f"epochs={EPOCHS}", "model.dropout=0.3"]
    return load_config(Recipe, repository / "jobs" / "recipes" / "tiny.yaml", changes)


@pytest.fixture(scope="module")
def whole(dataset: str, settings: Settings, repository: Path) -> tuple[TrainResult, list[dict[str, Any]]]:
    """An uninterrupted run, and the rows its progress was told."""
    told: list[dict[str, Any]] = []
    return train(recipe_of(dataset, repository, "whole"), settings, progress=told.append), told


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def test_a_run_leaves_everything_in_its_directory(whole: tuple[TrainResult, list[dict[str, Any]]]) -> None:
    result, told = whole
    assert [row["epoch"] for row in told] == list(range(EPOCHS))
    assert told == result.history == json.loads((result.run_dir / "history.json").read_text())
    assert json.loads((result.run_dir / "recipe.json").read_text())["epochs"] == EPOCHS
    assert json.loads((result.run_dir / "evaluation.json").read_text()) == result.evaluation.to_json()
    best_and_last = [path for path in result.run_dir.iterdir() if path.name.startswith("checkpoint_")]
    assert 1 <= len([path for path in best_and_last if path.is_dir()]) <= 2


def test_the_bundle_is_the_best_epoch_and_evaluates_to_the_same(
    whole: tuple[TrainResult, list[dict[str, Any]]], settings: Settings, dataset: str
) -> None:
    result, _ = whole
    model = load_bundle(result.bundle_dir, load_encoders=True)
    assert model.digest == result.bundle_digest
    assert model.provenance["dataset_digest"] == result.dataset_digest
    best = min(result.history, key=lambda row: row["val_total"])
    assert model.provenance["best_epoch"] == best["epoch"] + 1
    assert set(model.intervals) == {"image", "music", "caption"}
    assert set(model.provenance["reference"]) == {"image", "music", "caption", "items"}
    assert len(model.provenance["reference"]["music"]["arousal"]) == 101
    again = evaluate(result.bundle_dir, dataset, settings)
    assert again.metrics == result.evaluation.metrics
    assert again.model_digest == result.bundle_digest
    card = (result.bundle_dir / "card.md").read_text()
    assert all(heading in card for heading in ("## Data", "## Figures", "## Limits", "## Intended use", "## Recipe"))


def test_a_run_name_is_never_reused_silently(
    whole: tuple[TrainResult, list[dict[str, Any]]], settings: Settings, dataset: str, repository: Path
) -> None:
    with pytest.raises(UsageError, match="run 'whole' exists already"):
        train(recipe_of(dataset, repository, "whole"), settings)


def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_model(
    whole: tuple[TrainResult, list[dict[str, Any]]], settings: Settings, dataset: str, repository: Path
) -> None:
    recipe = recipe_of(dataset, repository, "stopped")
    before = signal.getsignal(signal.SIGINT)

    def press_ctrl_c(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, settings, progress=press_ctrl_c)
    assert signal.getsignal(signal.SIGINT) is before
    assert not (settings.runs_dir / "stopped" / "bundle").exists()

    told: list[dict[str, Any]] = []
    resumed = train(recipe, settings, resume="stopped", progress=told.append)

    # On a busy machine the workers may have ended before the interrupt reached them: then no epoch is left to tell of.
    assert all(0 < row["epoch"] < EPOCHS for row in told)
    assert without_time(resumed.history) == without_time(whole[0].history)
    expected = load_bundle(whole[0].bundle_dir, load_encoders=False).state_dict()
    for name, tensor in load_bundle(resumed.bundle_dir, load_encoders=False).state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy(), err_msg=name)

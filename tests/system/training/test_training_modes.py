"""Media mode and sweeps on a Ray cluster, from the recipe to a model that serves."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_pass import install

from mmva import load_bundle
from mmva.errors import UsageError
from mmva.imemnet.splits import LEAKAGE_WARNING
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.reproduction import load_reproduction, reproduce
from mmva_platform.settings import Settings, load_config, validate
from mmva_platform.training.evaluation.evaluate import evaluate
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import train

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_media_mode_tunes_backbones_into_a_bundle_that_serves(
    settings: Settings, dataset: str, repository: Path
) -> None:
    changes = [f"dataset={dataset}", "name=tuned", "epochs=2", "mode=media", "workers=2"]
    changes += ["media.layers={image: 1, music: 1, caption: 0}", "media.lr={image: 1e-3, music: 1e-3, caption: 1e-3}"]
    recipe = load_config(Recipe, repository / "jobs" / "recipes" / "tiny.yaml", changes)
    result = train(recipe, settings)

    assert [row["epoch"] for row in result.history] == [0, 1]
    assert all(np.isfinite(row["loss"]) and row["workers"] == 2 for row in result.history)
    model = load_bundle(result.bundle_dir, load_encoders=True)
    plain = Dataset.open(dataset, settings)
    specs = {modality: record["spec"] for modality, record in model.backbones.items()}
    assert Path(specs["image"]["tuned"]).parent == result.run_dir / "backbones"
    assert (settings.scratch / "mmva-media").is_dir()  # type: ignore[operator] # set by the fixture
    assert specs["caption"]["tuned"] is None
    # What service computes from media is what the dataset's new embeddings gave: one item of each kind.
    again = evaluate(result.bundle_dir, dataset, settings)
    assert again.metrics == result.evaluation.metrics
    assert again.rows == {m: plain.info.counts[m]["test"] for m in ("image", "music", "caption")}


def test_a_mistake_that_a_worker_finds_ends_the_run_at_once_with_its_one_line(
    settings: Settings, dataset: str, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = [f"dataset={dataset}", "name=mistaken", "mode=media", "media.layers={image: 9, music: 0, caption: 0}"]
    with pytest.raises(UsageError, match=r"^media\.layers: 9 is more than the 2 blocks of \w+$"):
        train(load_config(Recipe, repository / "jobs" / "recipes" / "tiny.yaml", changes), settings)
    assert "continues from its last checkpoint" not in caplog.text


def test_a_sweep_ends_trials_early_and_its_best_trial_is_a_normal_run(settings: Settings, dataset: str) -> None:
    from mlflow import MlflowClient

    from mmva_platform.training.sweep import SweepOptions
    from mmva_platform.workflows import sweep_and_register

    shared: dict[str, Any] = {"dataset": dataset, "preset": "tiny", "epochs": 6, "batch_size": 16}
    shared["model"] = {"hidden": 16}
    grid: dict[str, list[Any]] = {"optimizer.lr": [1e-3, 3.0], "optimizer.ridge": [0.1, 1e4]}
    values = {"recipe": shared, "grid": grid, "name": "swept", "grace_epochs": 1, "reduction": 2}
    found, outcome = sweep_and_register(validate(SweepOptions, values, "sweep"), settings)

    assert len(found.trials) == 4
    assert [trial["error"] for trial in found.trials] == [None] * 4
    best = min(found.trials, key=lambda trial: trial["value"])
    assert found.best.optimizer.lr == best["point"]["optimizer.lr"]
    assert any(trial["ended_early"] for trial in found.trials)
    assert best["epochs"] == 6
    # The normal run, on two Ray workers, computes what the trial computed.
    assert outcome.run_name == "swept"
    history = MlflowClient(settings.tracking_uri).get_metric_history(outcome.run_id, "train/val_total")
    assert min(metric.value for metric in history) == pytest.approx(best["value"], rel=1e-4)

    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name(settings.tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("mmva.kind") == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 4
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.data.params["optimizer.lr"] for run in children} == {"0.001", "3.0"}
    curves = [client.get_metric_history(child.info.run_id, "val_total") for child in children]
    assert sorted(map(len, curves)) == sorted(trial["epochs"] for trial in found.trials)
    assert parent.data.metrics["best/val_total"] == best["value"]


def test_ctrl_c_ends_a_sweep(settings: Settings, dataset: str) -> None:
    from ray.tune import Callback

    from mmva_platform.training.sweep import SweepOptions, sweep

    class CtrlC(Callback):
        def on_trial_result(self, *_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    recipe = {"dataset": dataset, "preset": "tiny", "epochs": 6, "model": {"hidden": 16}}
    options = validate(SweepOptions, {"recipe": recipe, "grid": {"seed": [0, 1]}, "grace_epochs": 1}, "sweep")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        sweep(options, settings, callbacks=[CtrlC()])
    assert signal.getsignal(signal.SIGINT) is before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Tune leaves its logs of the trials open
        gc.collect()


def test_the_reproduction_runs_end_to_end_on_a_miniature(
    settings: Settings, dataset: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    path = repository / "jobs" / "recipes" / "reproduce" / "miniature.yaml"
    media = str(Path(dataset).parent / "media")
    made = f"{settings.home}/reproduction"
    job = load_reproduction(path, media, [f"recipe.dataset={made}", "recipe.epochs=2"])
    evaluation = reproduce(job, settings)
    assert evaluation.dataset == made
    assert evaluation.clip_split is not None
    text = evaluation.to_markdown()
    for part in ("CDCML (2020)", "MMVA (2025)", "a split by clip", LEAKAGE_WARNING):
        assert part in text

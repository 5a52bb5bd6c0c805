"""Training on a Ray cluster: a bundle at the end, and a run that continues whatever was killed."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mmva import load_bundle
from mmva.errors import UsageError
from mmva.models.model import MMVA
from mmva_platform.datasets.features import load_features
from mmva_platform.draining import Stopped
from mmva_platform.settings import Settings, load_config
from mmva_platform.tracking.store import open_client
from mmva_platform.training import trainer
from mmva_platform.training.distributed import launch
from mmva_platform.training.evaluation.evaluate import evaluate
from mmva_platform.training.loop.in_process import train_here
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import TrainResult, train
from mmva_platform.workflows import resume_and_register, train_and_register

pytestmark = [pytest.mark.system, pytest.mark.slow]
EPOCHS = 24
# Dropout, because a resumed run needs every rank's random state back; many steps, to be caught in their midst.
OPTIONS = [f"epochs={EPOCHS}", "batch_size=2", "model.dropout=0.3", "checkpoint.every_s=0"]


def recipe_of(dataset: str, repository: Path, name: str, *changes: str) -> Recipe:
    """The repository's tiny recipe with these changes."""
    overrides = [f"dataset={dataset}", f"name={name}", *OPTIONS, *changes]
    return load_config(Recipe, repository / "jobs" / "recipes" / "tiny.yaml", overrides)


@pytest.fixture(scope="module")
def whole(dataset: str, settings: Settings, repository: Path) -> tuple[TrainResult, list[dict[str, Any]]]:
    """An uninterrupted run of two workers, and the rows its progress was told."""
    told: list[dict[str, Any]] = []
    return train(recipe_of(dataset, repository, "whole", "workers=2"), settings, progress=told.append), told


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def checkpoints(settings: Settings, name: str) -> list[Path]:
    """Oldest first."""
    return sorted((settings.home / "runs" / name).glob("checkpoint_0*"))


def test_a_run_leaves_everything_in_its_directory_and_its_bundle_is_the_best_epoch(
    whole: tuple[TrainResult, list[dict[str, Any]]], settings: Settings, dataset: str, repository: Path
) -> None:
    result, told = whole
    assert [row["epoch"] for row in told] == list(range(EPOCHS))
    assert told == result.history == json.loads((result.run_dir / "history.json").read_text())
    assert {row["workers"] for row in told} == {2}
    assert json.loads((result.run_dir / "recipe.json").read_text())["epochs"] == EPOCHS
    assert json.loads((result.run_dir / "evaluation.json").read_text()) == result.evaluation.to_json()
    assert len(checkpoints(settings, "whole")) == 2

    model = load_bundle(result.bundle_dir, load_encoders=True)
    assert model.digest == result.bundle_digest
    assert model.provenance["dataset_digest"] == result.dataset_digest
    best = min(result.history, key=lambda row: row["val_total"])
    assert model.provenance["best_epoch"] == best["epoch"] + 1
    assert set(model.intervals) == {"image", "music", "caption"}
    assert len(model.provenance["reference"]["music"]["arousal"]) == 101
    again = evaluate(result.bundle_dir, dataset, settings)
    assert again.metrics == result.evaluation.metrics
    assert again.model_digest == result.bundle_digest
    card = (result.bundle_dir / "card.md").read_text()
    assert all(heading in card for heading in ("## Data", "## Figures", "## Limits", "## Intended use", "## Recipe"))
    with pytest.raises(UsageError, match="run 'whole' exists already"):
        train(recipe_of(dataset, repository, "whole"), settings)


def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_bits(
    whole: tuple[TrainResult, list[dict[str, Any]]], settings: Settings, dataset: str, repository: Path
) -> None:
    recipe = recipe_of(dataset, repository, "stopped", "workers=2")
    before = signal.getsignal(signal.SIGINT)

    def press_ctrl_c(row: dict[str, Any]) -> None:
        if row["epoch"] >= 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, settings, progress=press_ctrl_c)
    assert signal.getsignal(signal.SIGINT) is before
    assert not train_workers(), "they have ended with the run"
    assert checkpoints(settings, "stopped")[-1].name < f"checkpoint_{EPOCHS:06d}", "it was to be caught on its way"

    resumed = train(recipe, settings, resume="stopped")
    assert without_time(resumed.history) == without_time(whole[0].history)
    assert_same_weights(resumed, load_bundle(whole[0].bundle_dir, load_encoders=False))


def test_a_run_that_everything_happens_to_equals_a_loop_that_nothing_happens_to(
    settings: Settings, dataset: str, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Driver killed, last checkpoint damaged, preempted by SIGTERM, a worker killed: the same bits, one MLflow run."""
    name = "unlucky"
    driver = start_driver(settings, dataset, repository, name)
    wait_until(lambda: any(path.name >= "checkpoint_000002" for path in checkpoints(settings, name)[1:]), driver)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not train_workers())  # Ray ends the driver's workers a moment later
    last = checkpoints(settings, name)[-1]
    assert last.name < f"checkpoint_{EPOCHS:06d}", "it was to be caught on its way"
    state = last / "state.pt"
    state.write_bytes(state.read_bytes()[:-100] if state.exists() else b"")
    (run_before,) = mlflow_runs(settings, name)
    assert run_before.info.status == "RUNNING"

    def own(values: dict[str, Any]) -> Recipe:
        return Recipe.model_validate(values)

    threading.Thread(target=preempt_after, args=(lambda: checkpoints(settings, name)[-1].name > last.name,)).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=r"stopped and saved in epoch .*; continue with --resume unlucky"):
        resume_and_register(name, settings, own)
    assert signal.getsignal(signal.SIGTERM) is before
    assert "using the one before it" in caplog.text
    (run_stopped,) = mlflow_runs(settings, name)
    assert run_stopped.info.run_id == run_before.info.run_id
    assert run_stopped.info.status == "KILLED"
    assert "stopped and saved in epoch" in run_stopped.data.tags["mmva.cause"]

    at = checkpoints(settings, name)[-1].name
    killed = threading.Thread(target=kill_a_worker, args=(lambda: checkpoints(settings, name)[-1].name > at,))
    killed.start()
    outcome = resume_and_register(name, settings, own)
    killed.join(1.0)
    assert not killed.is_alive()
    assert "continues from its last checkpoint" in caplog.text

    recipe = recipe_of(dataset, repository, name, "workers=1")
    model, history = train_here(recipe, load_features(dataset, "tiny", settings))
    run = settings.home / "runs" / name
    assert without_time(json.loads((run / "history.json").read_text())) == without_time(history)
    weights = load_bundle(run / "bundle", load_encoders=False).state_dict()
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(weights[key].numpy(), tensor.numpy(), err_msg=key)

    (finished,) = mlflow_runs(settings, name)
    assert (finished.info.run_id, finished.info.status) == (outcome.run_id, "FINISHED")
    curve = open_client(settings).get_metric_history(outcome.run_id, "train/val_total")
    assert {metric.step for metric in curve} == set(range(EPOCHS))
    assert len({metric.timestamp for metric in curve}) > 5, "logged while it ran"
    assert any(name.startswith("system/rank_0/") for name in finished.data.metrics)
    with pytest.raises(UsageError, match="this run is finished and registered as version"):
        resume_and_register(name, settings, own)


def test_a_run_on_a_full_cluster_says_what_it_waits_for_and_sigterm_ends_it(
    settings: Settings, dataset: str, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    caplog.set_level(logging.INFO, logger=launch.__name__)
    hog = ray.remote(num_cpus=4)(Hog).remote()
    ray.get(hog.here.remote())
    waits = "waits for 1 worker (0.5 CPU); free in the cluster: 0 CPU"
    threading.Thread(target=preempt_after, args=(lambda: waits in caplog.text,)).start()
    try:
        cause = "stopped while it waited for 1 worker (0.5 CPU), before its first checkpoint; continue with --resume"
        with pytest.raises(Stopped, match=re.escape(cause)):
            train_and_register(recipe_of(dataset, repository, "full", "workers=1"), settings)
    finally:
        ray.kill(hog)
    (run,) = mlflow_runs(settings, "full")
    assert run.info.status == "KILLED"
    assert cause in run.data.tags["mmva.cause"]


def test_sigterm_after_the_last_epoch_ends_the_mlflow_run_and_resume_only_finishes_it(
    settings: Settings, dataset: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "finish", told)
    recipe = recipe_of(dataset, repository, "late", "workers=1", "epochs=2", "batch_size=16")
    with pytest.raises(Stopped, match=r"^training late: stopped; continue with --resume late$"):
        train_and_register(recipe, settings)
    (stopped,) = mlflow_runs(settings, "late")
    assert stopped.info.status == "KILLED"
    assert "training late: stopped" in stopped.data.tags["mmva.cause"]

    monkeypatch.undo()
    monkeypatch.setattr(launch, "run_on_ray", lambda *_, **__: pytest.fail("there is nothing left to train"))
    outcome = resume_and_register("late", settings, Recipe.model_validate)
    (finished,) = mlflow_runs(settings, "late")
    assert (finished.info.run_id, finished.info.status) == (stopped.info.run_id, "FINISHED")
    assert "mmva.cause" not in finished.data.tags
    assert outcome.run_id == finished.info.run_id


class Hog:
    """Takes CPUs."""

    def here(self) -> bool:
        """Once it has them."""
        return True


def assert_same_weights(result: TrainResult, expected: MMVA) -> None:
    """To the last bit."""
    weights = expected.state_dict()
    for name, tensor in load_bundle(result.bundle_dir, load_encoders=False).state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights[name].numpy(), err_msg=name)


def mlflow_runs(settings: Settings, name: str) -> list[Any]:
    client = open_client(settings)
    experiment = client.get_experiment_by_name(settings.tracking.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'"))


def train_workers() -> list[psutil.Process]:
    """Processes of this session's Ray Train workers."""
    own = psutil.Process().children(recursive=True)
    return [process for process in own if "RayTrainWorker" in " ".join(command_of(process))]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def kill_a_worker(condition: Callable[[], object]) -> None:
    """Once the run has come so far."""
    wait_until(condition)
    train_workers()[0].kill()


def preempt_after(condition: Callable[[], object]) -> None:
    wait_until(condition)
    os.kill(os.getpid(), signal.SIGTERM)


def start_driver(settings: Settings, dataset: str, repository: Path, name: str) -> subprocess.Popen[str]:
    """`mmva train` as a process of its own, on this session's Ray."""
    import ray

    recipe = ["--config", str(repository / "jobs" / "recipes" / "tiny.yaml")]
    for override in [f"dataset={dataset}", f"name={name}", *OPTIONS, "workers=1"]:
        recipe += ["--set", override]
    config = settings.home / f"{name}.yaml"
    address = ray.get_runtime_context().gcs_address
    config.write_text(json.dumps({"home": str(settings.home), "cluster": {"address": address}}))
    command = [sys.executable, "-m", "mmva_platform.cli", "--settings", str(config), "train", *recipe]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a running process to bring about a condition."""
    until = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)

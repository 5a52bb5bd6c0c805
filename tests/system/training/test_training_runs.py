"""Training on a Ray cluster: two workers, a bundle at the end, and a run that continues whatever was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mmva import load_bundle
from mmva.errors import OperationFailed, UsageError
from mmva.model import MMVA
from mmva_platform.datasets.features import load_features
from mmva_platform.settings import Settings, load_config
from mmva_platform.training.evaluation import evaluate
from mmva_platform.training.leakage import train_here
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.trainer import TrainResult, train

pytestmark = [pytest.mark.system, pytest.mark.slow]
EPOCHS = 16


def overrides_of(dataset: str, name: str) -> list[str]:
    """Dropout, because a resumed run needs every rank's random state back; many steps, to be caught in their midst.

    Saves by the clock within epochs: two workers, of which one has the clock, once waited for each other there.
    """
    options = [f"dataset={dataset}", f"name={name}", f"epochs={EPOCHS}", "batch_size=2", "model.dropout=0.3"]
    return [*options, "checkpoint.every_s=0.5"]


def recipe_of(dataset: str, repository: Path, name: str, *changes: str) -> Recipe:
    """The repository's tiny recipe with these changes."""
    return load_config(Recipe, repository / "jobs" / "recipes" / "tiny.yaml", [*overrides_of(dataset, name), *changes])


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
    assert 2 <= len(list((result.run_dir / "checkpoints").iterdir())) <= 3  # the last two, and the best


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
    assert_same_weights(resumed, load_bundle(whole[0].bundle_dir, load_encoders=False))


def test_a_run_that_everything_happens_to_equals_a_loop_that_nothing_happens_to(
    settings: Settings, dataset: str, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Driver killed, last checkpoint damaged, preempted by SIGTERM, a worker killed: the same bits in the end."""
    name, changes = "unlucky", ("checkpoint.every_s=0", "workers=1")
    folder = settings.runs_dir / name / "checkpoints"
    driver = start_driver(settings, dataset, repository, name, *changes)
    wait_until(lambda: folder.is_dir() and [path for path in folder.iterdir() if path.name >= "000001"], driver)
    driver.kill()
    driver.communicate()
    time.sleep(1.0)  # Ray ends the driver's workers a moment later
    last = newest(folder)
    assert last.name < "000009", "it was to be caught on its way"
    last.write_bytes(last.read_bytes()[:-100])

    def preempt(_row: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    recipe = recipe_of(dataset, repository, name, *changes)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OperationFailed, match=r"stopped in epoch .* and saved; go on with --resume unlucky"):
        train(recipe, settings, resume=name, progress=preempt)
    assert signal.getsignal(signal.SIGTERM) is before
    assert f"{last.name}: is damaged" in caplog.text
    assert "going back to the one before it" in caplog.text
    assert newest(folder).name < f"{EPOCHS:06d}"

    killed: list[int] = []

    def kill_one(_row: dict[str, Any]) -> None:
        if not killed:
            victim = train_workers()[0]
            victim.kill()
            killed.append(victim.pid)

    result = train(recipe, settings, resume=name, progress=kill_one)
    assert len(killed) == 1
    model, history = train_here(recipe, load_features(dataset, "tiny", settings))
    assert without_time(result.history) == without_time(history)
    assert_same_weights(result, model)


def assert_same_weights(result: TrainResult, expected: MMVA) -> None:
    """To the last bit."""
    weights = expected.state_dict()
    for name, tensor in load_bundle(result.bundle_dir, load_encoders=False).state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights[name].numpy(), err_msg=name)


def newest(folder: Path) -> Path:
    """The last checkpoint."""
    return max(path for path in folder.iterdir() if path.suffix == ".pt")


def train_workers() -> list[psutil.Process]:
    """Processes of this session's Ray Train workers."""
    own = psutil.Process().children(recursive=True)
    return [process for process in own if "RayTrainWorker" in " ".join(process.cmdline())]


def start_driver(settings: Settings, dataset: str, repository: Path, name: str, *changes: str) -> subprocess.Popen[str]:
    """`mmva train` as a process of its own, on this session's Ray."""
    import ray

    recipe = ["--config", str(repository / "jobs" / "recipes" / "tiny.yaml")]
    for override in [*overrides_of(dataset, name), *changes]:
        recipe += ["--set", override]
    config = settings.home / f"{name}.yaml"
    address = ray.get_runtime_context().gcs_address
    config.write_text(json.dumps({"home": str(settings.home), "cluster": {"address": address}}))
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from mmva_platform.cli.main import main; main()",
            "--settings",
            str(config),
            "train",
            *recipe,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait for a running process to bring about a condition."""
    until = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.002)

"""However a training ends, its MLflow run ends with it, and says why."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import OperationFailed, UsageError
from mmva_platform.draining import Stopped
from mmva_platform.settings import Settings
from mmva_platform.tracking.store import TAG_CAUSE, open_client
from mmva_platform.training import trainer
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunFacts, create_run
from mmva_platform.workflows import train_and_register

pytestmark = pytest.mark.slow  # MLflow's schema


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One SQLite database for the module."""
    return Settings(home=tmp_path_factory.mktemp("home"))


def raises(error: BaseException) -> Callable[[], None]:
    def end() -> None:
        raise error

    return end


def told_to_stop() -> None:
    """As between two stages, where nothing but Python's own handler would be in place."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (raises(UsageError("media.layers: 9 of 2")), (UsageError, "FAILED", "media.layers: 9 of 2")),
        (raises(OperationFailed("diverged:\nloss")), (OperationFailed, "FAILED", "diverged: loss")),
        (raises(Stopped("waited for 2 workers")), (Stopped, "KILLED", "waited for 2 workers")),
        (raises(KeyboardInterrupt()), (KeyboardInterrupt, "KILLED", "KeyboardInterrupt")),
        (told_to_stop, (Stopped, "KILLED", "training sigterm: stopped; continue with --resume sigterm")),
    ],
    ids=["user error", "divergence", "full cluster", "ctrl-c", "sigterm"],
)
def test_a_run_that_ends_early_is_ended_with_its_cause(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, end: Any, expected: Any
) -> None:
    name = request.node.callspec.id.replace(" ", "-")
    raised, status, cause = expected

    def train(recipe: Recipe, settings: Settings, *, resume: str | None, tracker: trainer.Tracker) -> None:
        del resume
        facts = RunFacts(dataset_digest="d" * 64, fingerprints={})
        tracker.started(create_run(settings, recipe, facts), recipe, facts)
        end()

    monkeypatch.setattr(trainer, "train", train)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(raised) as caught:
        train_and_register(Recipe(dataset="d", name=name), settings)
    assert signal.getsignal(signal.SIGTERM) == before
    assert raised is KeyboardInterrupt or " ".join(str(caught.value).split()) == cause
    client = open_client(settings)
    experiment = client.get_experiment_by_name(settings.tracking.experiment)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'")
    assert run.info.status == status
    assert run.data.tags[TAG_CAUSE] == cause


def test_a_run_that_has_not_begun_needs_no_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "train", lambda *_, **__: told_to_stop())
    with pytest.raises(Stopped, match=r"^training: stopped before it began$"):
        train_and_register(Recipe(dataset="d"), Settings(home=tmp_path))
    assert not list(tmp_path.iterdir())

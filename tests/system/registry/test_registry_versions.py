"""Runs and the registry against a real MLflow on SQLite: log, register, resolve."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from registry_cases import COMMIT, make_bundle, make_result

from mmva.errors import CheckFailed, UsageError
from mmva.modalities import MODALITIES
from mmva.models.bundle import load_bundle
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage
from mmva_platform.tracking import runs
from mmva_platform.tracking.model import BUNDLE_PATH
from mmva_platform.tracking.promotion import promote
from mmva_platform.tracking.registry import list_versions, register, show_version, training_history
from mmva_platform.tracking.resolve import resolve_model
from mmva_platform.tracking.runs import log_training_run
from mmva_platform.tracking.store import open_client, quiet
from mmva_platform.training.evaluation.evaluate import Evaluation
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory
from mmva_platform.workflows import resume_and_register

pytestmark = [pytest.mark.slow, pytest.mark.system]
ONLY_SQLITE = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
PREDICTIONS = {"image": (np.full((5, 2), 0.4), np.full((5, 2), 0.5))}


def stored_bundle(settings: Settings, version: int) -> Storage:
    """Where the registry keeps a version's bundle."""
    location = open_client(settings).get_model_version_download_uri(settings.tracking.model_name, str(version))
    return open_storage(f"{location}/{BUNDLE_PATH}", settings.storage)


@ONLY_SQLITE
def test_nothing_is_left_in_the_working_directory_or_the_process(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    result = make_result(tmp_path, name="clean")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    promote(register(log_training_run(result, settings, predictions={}), settings), settings)
    assert list(empty.iterdir()) == []
    assert not mlflow.is_tracking_uri_set()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_run_is_logged_with_everything_that_made_it(settings: Settings, tmp_path: Path) -> None:
    result = make_result(tmp_path, name="logged")
    run_id = log_training_run(result, settings, predictions=PREDICTIONS)
    client = open_client(settings)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.0003"
    assert run.data.params["preset"] == "tiny"
    assert run.data.tags["mlflow.source.git.commit"] == COMMIT
    assert run.data.tags["mmva.git_dirty"] == "true"
    assert run.data.tags["mmva.model_digest"] == result.bundle_digest
    assert run.data.tags["mmva.dataset_digest"] == "d" * 64
    assert [(each.step, each.value) for each in client.get_metric_history(run_id, "train/loss")] == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
    ]
    assert run.data.metrics["test/image/valence/mse"] == 0.02
    assert run.data.metrics["test/image/valence/mse_high"] == pytest.approx(0.03)
    assert run.data.metrics["test/retrieval/image_to_music/ndcg_at_10"] == 0.8
    assert run.data.metrics["test/floors/music/arousal"] == 0.03
    assert "test/image/valence/ccc" not in run.data.metrics
    assert json.loads(run.inputs.dataset_inputs[0].dataset.source)["digest"] == "d" * 64
    artifacts = {entry.path for entry in [*client.list_artifacts(run_id), *client.list_artifacts(run_id, "plots")]}
    assert artifacts >= {"recipe.json", "evaluation.json", "history.json", "card.md", "plots/predicted_image.png"}
    assert "plots/target_scores.png" in artifacts
    (root,) = settings.tracking.artifact_roots or (f"file://{settings.home}",)
    assert run.info.artifact_uri.startswith(f"{root}/")


def test_a_run_that_breaks_off_is_failed_and_cannot_be_registered(settings: Settings, tmp_path: Path) -> None:
    result = make_result(tmp_path, name="broken")
    with pytest.raises(ValueError, match="same size"):
        log_training_run(result, settings, predictions={"image": (np.zeros((5, 2)), np.zeros((4, 2)))})
    client = open_client(settings)
    experiment = client.get_experiment_by_name(settings.tracking.experiment)
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], "attributes.run_name = 'broken'")[0]
    assert run.info.status == "FAILED"
    with pytest.raises(UsageError, match="no complete model"):
        register(run.info.run_id, settings)


def test_an_altered_bundle_is_not_logged(settings: Settings, tmp_path: Path) -> None:
    result = make_result(tmp_path, name="altered")
    (result.bundle_dir / "card.md").write_text("another card")
    with pytest.raises(CheckFailed, match=r"card\.md"):
        log_training_run(result, settings, predictions={})


def test_register_binds_digests_and_gives_no_alias(settings: Settings, tmp_path: Path) -> None:
    result = make_result(tmp_path, name="bound")
    run_id = log_training_run(result, settings, predictions={})
    assert register(run_id, settings) == 1
    (version,) = list_versions(settings)
    assert version.aliases == ()
    assert (version.model_digest, version.dataset_digest) == (result.bundle_digest, "d" * 64)
    assert (version.preset, version.run_id, version.verdict) == ("tiny", run_id, "")
    assert version.mse == dict.fromkeys(MODALITIES, pytest.approx(0.02))
    assert "never judged" in version.to_text()
    assert json.loads(json.dumps(version.to_json()))["version"] == 1
    assert training_history(1, settings) == result.history
    assert "image valence: mse 0.0200 [0.0100, 0.0300]" in show_version(1, settings).to_text()


def test_a_run_that_ended_while_mlflow_was_away_is_only_registered_by_resume(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "predict_rows", lambda *_: {})
    monkeypatch.setattr(Evaluation, "to_markdown", lambda _: "made-up figures")
    result = make_result(settings.home / "runs", name=f"away-{settings.tracking.model_name[-20:]}")
    run = RunDirectory(result.run_name, settings)
    run.write("run.json", {"dataset_digest": result.dataset_digest, "fingerprints": {}})
    run.write("recipe.json", result.recipe.model_dump(mode="json"))
    run.write("history.json", result.history)
    run.write("evaluation.json", result.evaluation.to_json())
    logged = log_training_run(result, settings)  # and the server went before it was registered

    outcome = resume_and_register(run.name, settings, Recipe.model_validate)
    (version,) = list_versions(settings)
    assert (version.run_id, version.model_digest) == (logged, result.bundle_digest)
    assert outcome.version == version.version
    assert training_history(version.version, settings) == result.history
    with pytest.raises(UsageError, match="this run is finished and registered as version 1 of"):
        resume_and_register(run.name, settings, Recipe.model_validate)
    with pytest.raises(UsageError, match="the recipe changed"):
        resume_and_register(run.name, settings, lambda own: Recipe.model_validate(own | {"epochs": 99}))

    open_client(settings).delete_run(logged)  # of a run that was never logged, too
    open_client(settings).delete_registered_model(settings.tracking.model_name)
    assert resume_and_register(run.name, settings, Recipe.model_validate).run_id != logged


def test_no_model_yet_is_an_empty_list(settings: Settings) -> None:
    assert list_versions(settings) == []
    with pytest.raises(UsageError, match="no versions at all"):
        promote(1, settings)


def test_every_spelling_of_a_model_resolves_to_the_same_bundle(settings: Settings, tmp_path: Path) -> None:
    result = make_result(tmp_path, name="spelled")
    run_id = log_training_run(result, settings, predictions={})
    version = register(run_id, settings)
    promote(version, settings)
    name = settings.tracking.model_name
    for uri in (str(result.bundle_dir), f"runs:/{run_id}/model", f"models:/{name}/1", f"models:/{name}@champion"):
        resolved = resolve_model(uri, settings)
        assert resolved.digest == result.bundle_digest
        assert load_bundle(resolved.bundle_dir, load_encoders=False).digest == result.bundle_digest
        assert resolved.version == ("1" if uri.startswith("models:/") else None)
    # From the cache now: the store's copy is no longer needed.
    stored = stored_bundle(settings, version)
    for entry in list(stored.list()):
        stored.delete(entry.path)
    assert resolve_model(f"models:/{name}/1", settings).digest == result.bundle_digest


@ONLY_SQLITE
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("no/such/folder", "no such folder; a model is a bundle's folder, runs:/RUN/model"),
        ("models:/x", "write it as"),
        ("models:/../etc/passwd", "write it as"),
        ("runs:/0123/model", "no run '0123'"),
        (".", "not a bundle"),
    ],
)
def test_what_is_no_model_is_one_line(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        resolve_model(uri, settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_alias_or_version_lists_what_there_is(settings: Settings, registered: Callable[..., int]) -> None:
    promote(registered(), settings)
    registered()
    name = settings.tracking.model_name
    for reference in ("@challenger", "/7"):
        with pytest.raises(UsageError, match=r"it has 1 \(champion\), 2"):
            resolve_model(f"models:/{name}{reference}", settings)


def test_a_version_whose_files_were_exchanged_is_refused(settings: Settings, tmp_path: Path) -> None:
    result = make_result(tmp_path, name="exchanged", seed=50)
    version = register(log_training_run(result, settings, predictions={}), settings)
    other = make_bundle(tmp_path / "other", seed=99)
    for path in other.iterdir():
        stored_bundle(settings, version).write(path.name, path.read_bytes())
    with pytest.raises(CheckFailed, match="digest"):
        resolve_model(f"models:/{settings.tracking.model_name}/{version}", settings)
    assert not (settings.home / "cache" / "models" / result.bundle_digest).exists()


@ONLY_SQLITE
def test_a_file_store_is_refused_in_words(settings: Settings, tmp_path: Path) -> None:
    for uri in (f"file://{tmp_path}", str(tmp_path)):
        tracking = settings.tracking.model_copy(update={"uri": uri})
        with pytest.raises(UsageError, match=r"sqlite:///"):
            list_versions(settings.model_copy(update={"tracking": tracking}))


@ONLY_SQLITE
def test_an_unreadable_database_is_one_line(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"not a database" * 100)
    tracking = settings.tracking.model_copy(update={"uri": f"sqlite:///{tmp_path / 'broken.db'}"})
    with pytest.raises(UsageError, match=r"broken\.db") as caught:
        list_versions(settings.model_copy(update={"tracking": tracking}))
    assert "\n" not in str(caught.value)


@ONLY_SQLITE
def test_mlflows_loggers_stay_quiet(settings: Settings) -> None:
    list_versions(settings)
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.INFO)
    assert not logging.getLogger("alembic").isEnabledFor(logging.INFO)


def test_an_evaluation_changed_after_registration_is_noticed(
    settings: Settings, registered: Callable[..., int]
) -> None:
    version = registered(mse=0.04)
    client = open_client(settings)
    with quiet():
        client.log_text(list_versions(settings)[0].run_id, json.dumps({"metrics": {}}), "evaluation.json")
    with pytest.raises(CheckFailed, match="changed after registration"):
        promote(version, settings)

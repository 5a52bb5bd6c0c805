"""A training run in MLflow: what goes in, live curves, what came out, and the model as a pyfunc from code.

Everything that registry and gate later rely on (digests, the evaluation) is read back from here, so a run is marked
finished only after all of it has arrived.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import ArrayLike

from mmva.bundle import BundleInfo, read_bundle_info
from mmva.errors import UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking import plots
from mmva_platform.tracking.model import log_model
from mmva_platform.tracking.store import experiment_id, open_client, quiet, retry_while_busy
from mmva_platform.training.predictions import predict_split

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from mmva_platform.training.recipe import Recipe
    from mmva_platform.training.rundir import RunDirectory, RunFacts
    from mmva_platform.training.trainer import TrainResult

log = logging.getLogger(__name__)
Predictions = Mapping[str, tuple[ArrayLike, ArrayLike]]

EVALUATION_FILE: Final = "evaluation.json"
HISTORY_FILE: Final = "history.json"
TAG_MODEL_DIGEST: Final = "mmva.model_digest"
TAG_DATASET_DIGEST: Final = "mmva.dataset_digest"
TAG_DATASET_URI: Final = "mmva.dataset_uri"
TAG_PRESET: Final = "mmva.preset"
TAG_CAUSE: Final = "mmva.cause"  # why a run ended before its end
_MLFLOW_FILE: Final = "mlflow.json"  # in the run's directory
_CAUSE_LENGTH: Final = 500
_PARAM_LENGTH, _BATCH = 500, 100
_VALIDATION: Final = ("val_total", "val_va_mse", "val_matching_mse")
_DATASET_DIGEST_LENGTH = 36  # MLflow's column; the tag holds all of it


class RunLog:
    """A training run in MLflow, from its start on: curves and system metrics while it runs, and how it ended.

    Training does not depend on it: where MLflow is away, a warning says so, and the run is logged at its end or by
    --resume. A resumed run goes on in the MLflow run that it began in.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: MlflowClient | None = None
        self._run: RunDirectory | None = None
        self.run_id: str | None = None

    def started(self, run: RunDirectory, recipe: Recipe, facts: RunFacts) -> None:
        """Create the run with its parameters and its dataset, or continue it."""
        self._run = run

        def start() -> None:
            client = self._client = open_client(self._settings)
            with quiet():
                self.run_id = _continued(client, run)
                if self.run_id is not None:
                    return
                self.run_id = _create(client, self._settings, recipe, facts.dataset_digest)
            run.write(_MLFLOW_FILE, {"run_id": self.run_id})

        self._softly(start)

    def reported(self, ranks: list[dict[str, Any]]) -> None:
        """The workers' reports: epochs' rows as curves, and each worker's use of its machine."""
        report = ranks[0]
        step = int(report["step"])
        metrics = [metric for row in report["rows"] for metric in _epoch_metrics(row)]
        if "loss" in report:
            metrics.append(_metric("train/loss_so_far", report["loss"], step))
        for rank, each in enumerate(ranks):
            metrics += [_metric(f"system/rank_{rank}/{name}", value, step) for name, value in each["system"].items()]
        self._softly(lambda: self._log(metrics))

    def ended(self, error: BaseException) -> None:
        """Keep the run with the cause of its end: KILLED if it was told to stop, else FAILED."""
        told = isinstance(error, KeyboardInterrupt) or "stopped" in str(error)

        def end() -> None:
            if self._client is not None and self.run_id is not None:
                cause = " ".join((str(error) or type(error).__name__).split())[:_CAUSE_LENGTH]
                self._client.set_tag(self.run_id, TAG_CAUSE, cause)
                self._client.set_terminated(self.run_id, "KILLED" if told else "FAILED")

        self._softly(end)

    def _log(self, metrics: Sequence[Metric]) -> None:
        if self._client is not None and self.run_id is not None:
            with quiet():
                _log_metrics(self._client, self.run_id, metrics)

    def _softly(self, call: Callable[[], None]) -> None:
        """Training goes on without MLflow; what is wrong with the settings is still an error."""
        try:
            call()
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a tracking server answers
            reason = " ".join(str(error).split())[:200]
            log.warning("MLflow: %s; the run goes on, and is logged when it has ended", reason)


def log_training_run(run: TrainResult, settings: Settings, *, predictions: Predictions | None = None) -> str:
    """Write a finished training run to MLflow, into the run that it was tracked in if there is one.

    Args:
        run: The run.
        settings: Where MLflow is.
        predictions: Per modality, predicted and labelled VA points [N, 2] for the plots; those of the dataset's test
            split if None.

    Returns:
        MLflow's id of the run; its model is `runs:/<id>/model`.

    Raises:
        UsageError: If MLflow cannot be opened or the bundle is none.
        CheckFailed: If the bundle's files are not what its SHA256SUMS says.
    """
    from mmva_platform.training.rundir import RunDirectory

    info = read_bundle_info(run.bundle_dir)
    evaluation = run.evaluation.to_json()
    if predictions is None:
        predictions = predict_split(run.bundle_dir, run.recipe.dataset, settings, str(evaluation["split"]))
    client = open_client(settings)
    with quiet():
        run_id = _continued(client, RunDirectory(run.run_name, settings))
        if run_id is None:
            run_id = _create(client, settings, run.recipe, run.dataset_digest)
        try:
            for key, value in _tags(info).items():
                retry_while_busy(partial(client.set_tag, run_id, key, value))
            logged = {metric.step for metric in client.get_metric_history(run_id, "train/loss")}
            rows = [row for row in run.history if int(row["epoch"]) not in logged]
            metrics = [metric for row in rows for metric in _epoch_metrics(row)]
            metrics += [_metric(name, value, 0) for name, value in evaluation_metrics(evaluation)]
            _log_metrics(client, run_id, metrics)
            _log_documents(client, run_id, run, evaluation, info.card)
            for name, png in _pictures(run.history, predictions):
                _log_bytes(client, run_id, png, name)
            log_model(client, run_id, run.bundle_dir, tags={TAG_MODEL_DIGEST: info.digest})
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        retry_while_busy(lambda: client.set_terminated(run_id, "FINISHED"))
    return run_id


def logged_run(run: TrainResult, settings: Settings) -> str | None:
    """MLflow's id of this very run if it was logged to its end before."""
    client = open_client(settings)
    with quiet():
        found = client.search_runs(
            [experiment_id(client, settings)],
            f"tags.`{TAG_MODEL_DIGEST}` = '{run.bundle_digest}' and attributes.run_name = '{run.run_name}' "
            "and attributes.status = 'FINISHED'",
            max_results=1,
        )
    return str(found[0].info.run_id) if found else None


def _continued(client: MlflowClient, run: RunDirectory) -> str | None:
    """The MLflow run that a training run began in, running again; None if there is none any more."""
    from mlflow.exceptions import MlflowException

    if not run.storage.exists(_MLFLOW_FILE):
        return None
    run_id = str(run.read(_MLFLOW_FILE)["run_id"])
    try:
        if client.get_run(run_id).info.lifecycle_stage != "active":
            return None
    except MlflowException:
        return None
    client.update_run(run_id, status="RUNNING")
    return run_id


def _create(client: MlflowClient, settings: Settings, recipe: Recipe, dataset_digest: str) -> str:
    from mlflow.entities import Param

    from mmva_platform.training.trainer import git_commit

    commit, _, dirty = (git_commit() or "").partition("-")
    code = {"mlflow.source.git.commit": commit, "mmva.git_dirty": "true" if dirty else "false"} if commit else {}
    tags = {
        **code,
        "mmva.version": version("mmva-platform"),
        TAG_DATASET_DIGEST: dataset_digest,
        TAG_DATASET_URI: recipe.dataset,
        TAG_PRESET: recipe.preset,
    }
    experiment = experiment_id(client, settings)
    created = retry_while_busy(lambda: client.create_run(experiment, run_name=recipe.name, tags=tags))
    run_id = str(created.info.run_id)
    params = [Param(key, value) for key, value in flatten(recipe.model_dump(mode="json"))]
    for start in range(0, len(params), _BATCH):
        retry_while_busy(partial(client.log_batch, run_id, params=params[start : start + _BATCH]))
    _log_dataset(client, run_id, recipe.dataset, dataset_digest)
    return run_id


def _tags(info: BundleInfo) -> dict[str, str]:
    """Of a finished run: its model's digest, and the code that made it."""
    commit, _, dirty = str(info.provenance.get("commit") or "").partition("-")
    code = {"mlflow.source.git.commit": commit, "mmva.git_dirty": "true" if dirty else "false"} if commit else {}
    return {**code, TAG_MODEL_DIGEST: info.digest}


def _metric(name: str, value: float, step: int) -> Metric:
    from mlflow.entities import Metric

    return Metric(_metric_name(name), float(value), int(time.time() * 1000), step)


def _epoch_metrics(row: Mapping[str, Any]) -> list[Metric]:
    return [_metric(f"train/{key}", value, int(row["epoch"])) for key, value in _numbers(row)]


def _log_metrics(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    for start in range(0, len(metrics), _BATCH):
        retry_while_busy(partial(client.log_batch, run_id, metrics=metrics[start : start + _BATCH]))


def _log_dataset(client: MlflowClient, run_id: str, uri: str, digest: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=uri.rstrip("/").rpartition("/")[2] or uri,
        digest=digest[:_DATASET_DIGEST_LENGTH],
        source_type="mmva",
        source=json.dumps({"uri": uri, "digest": digest}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _log_documents(
    client: MlflowClient, run_id: str, run: TrainResult, evaluation: Mapping[str, Any], card: str
) -> None:
    client.log_text(run_id, _json(run.recipe.model_dump(mode="json")), "recipe.json")
    client.log_text(run_id, _json(evaluation), EVALUATION_FILE)
    client.log_text(run_id, _json(list(run.history)), HISTORY_FILE)
    client.log_text(run_id, card, "card.md")


def _pictures(history: Sequence[Mapping[str, Any]], predictions: Predictions) -> Iterator[tuple[str, bytes]]:
    for modality, (pred_N2, label_N2) in predictions.items():
        yield f"plots/predicted_{modality}.png", plots.predicted_against_labelled(modality, pred_N2, label_N2)
    known = {key for row in history for key, _ in _numbers(row)}
    for name, title, series in (
        ("training_loss", "Loss on the training split", [key for key in ("loss",) if key in known]),
        ("validation", "Validation", [key for key in _VALIDATION if key in known]),
    ):
        if series:
            yield f"plots/{name}.png", plots.training_curves(history, series, title)
    counts = [row["target_histogram"] for row in history if "target_histogram" in row]
    if counts:
        yield "plots/target_scores.png", plots.score_histogram([sum(column) for column in zip(*counts, strict=True)])


def _log_bytes(client: MlflowClient, run_id: str, data: bytes, artifact: str) -> None:
    folder, _, name = artifact.rpartition("/")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / name
        path.write_bytes(data)
        client.log_artifact(run_id, str(path), folder)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as MLflow parameters: dotted keys, lists as JSON, cut to what MLflow stores."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, (value if isinstance(value, str) else json.dumps(value))[:_PARAM_LENGTH]


def evaluation_metrics(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number of an evaluation under its split: `test/image/valence/mse`, with `..._low` and `..._high` beside it.

    A leaf {"value", "low", "high"} is one metric with its bounds; matching, retrieval, floors, counts go likewise.
    """
    split = str(evaluation.get("split", "test"))
    for part in ("metrics", "matching", "retrieval", "floors", "rows", "groups"):
        prefix = split if part == "metrics" else f"{split}/{part}"
        yield from _leaves(evaluation.get(part, {}), prefix)


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            leaf = f"{path}_{key}" if key in ("low", "high") else path if key == "value" else f"{path}/{key}"
            yield from _leaves(value, leaf)
    elif _is_number(tree):
        yield _metric_name(path), float(tree)


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if key != "epoch" and _is_number(value):
            yield key, float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _metric_name(name: str) -> str:
    """MLflow's alphabet has no "@" and no ">": ndcg@10 -> ndcg_at_10, image->music -> image_to_music."""
    return name.replace("->", "_to_").replace("@", "_at_")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"

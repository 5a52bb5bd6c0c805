"""A training run in MLflow: parameters, live curves, its end, and the model as a pyfunc from code.

Registry and gate read digests and the evaluation from here, so a run is marked finished only after all is logged.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import ArrayLike

from mmva.errors import UsageError
from mmva.models.bundle import load_bundle, read_bundle_info
from mmva_platform.draining import Stopped, exit_on_sigterm
from mmva_platform.settings import Settings
from mmva_platform.tracking import plots
from mmva_platform.tracking.model import log_model
from mmva_platform.tracking.store import (
    EVALUATION_FILE,
    HISTORY_FILE,
    TAG_CAUSE,
    TAG_DATASET_DIGEST,
    TAG_DATASET_URI,
    TAG_MODEL_DIGEST,
    TAG_PRESET,
    connected,
    experiment_id,
    quiet,
    retry_while_busy,
)
from mmva_platform.training.evaluation.predictions import predict_rows
from mmva_platform.training.rundir import RunDirectory, RunFacts, flat, git_commit

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from mmva_platform.training.recipe import Recipe
    from mmva_platform.training.trainer import TrainResult

log = logging.getLogger(__name__)
Predictions = Mapping[str, tuple[ArrayLike, ArrayLike]]

_MLFLOW_FILE: Final = "mlflow.json"  # in the run's directory
_CAUSE_LENGTH, _PARAM_LENGTH, _BATCH = 500, 500, 100
_DATASET_DIGEST_LENGTH = 36  # MLflow's column; the tag holds all of it


class RunLog:
    """A training run in MLflow from its start.

    Training does not depend on it: if MLflow does not answer, a warning is logged, and the run is written at its end or
    by --resume. A resumed run continues its MLflow run.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: MlflowClient | None = None
        self._run: RunDirectory | None = None
        self._run_id: str | None = None  # of an MLflow run that has not ended

    @classmethod
    @contextmanager
    def open(cls, settings: Settings) -> Iterator[RunLog]:
        """Track a training during the block: an error ends its MLflow run, with the cause. SIGTERM raises Stopped."""
        tracker = cls(settings)
        with exit_on_sigterm():
            try:
                yield tracker
            except SystemExit as error:
                name = tracker._run.name if tracker._run else None
                how = f" {name}: stopped; continue with --resume {name}" if name else ": stopped before it began"
                stopped = Stopped(f"training{how}")
                tracker._ended(stopped, "KILLED")
                raise stopped from error
            except BaseException as error:
                tracker._ended(error, "KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED")
                raise

    def started(self, run: RunDirectory, recipe: Recipe, facts: RunFacts) -> None:
        """Create the MLflow run with parameters and dataset, or continue it."""
        self._run = run
        with _softly(), connected(self._settings) as client:
            self._begin(client, run, recipe, facts.dataset_digest, note=True)

    def reported(self, ranks: list[dict[str, Any]]) -> None:
        """Log the workers' reports: rows of epochs as curves, and each worker's use of its machine."""
        report = ranks[0]
        step = int(report["step"])
        metrics = [metric for row in report["rows"] for metric in _epoch_metrics(row)]
        if "loss" in report:
            metrics.append(_metric("train/loss_so_far", report["loss"], step))
        for rank, each in enumerate(ranks):
            metrics += [_metric(f"system/rank_{rank}/{name}", value, step) for name, value in each["system"].items()]
        with _softly():
            self._log_metrics(metrics)

    def finish(self, run: TrainResult, predictions: Predictions | None = None) -> str:
        """Write everything of a finished run and mark it finished; see log_training_run."""
        info = read_bundle_info(run.bundle_dir)
        evaluation = run.evaluation.to_json()
        if predictions is None:
            model = load_bundle(run.bundle_dir, load_encoders=False)
            rows = predict_rows(model, run.recipe.dataset, self._settings, run.evaluation.split)
            predictions = {m: (found.predicted_N2, found.label_N2) for m, found in rows.items()}
        self._run = RunDirectory(run.run_name, self._settings)
        with connected(self._settings) as client:
            run_id = self._begin(client, self._run, run.recipe, run.dataset_digest)
            for key, value in (_code_tags(info.provenance.get("commit")) | {TAG_MODEL_DIGEST: info.digest}).items():
                retry_while_busy(client.set_tag, run_id, key, value)
            logged = {metric.step for metric in client.get_metric_history(run_id, "train/loss")}
            metrics = [m for row in run.history if int(row["epoch"]) not in logged for m in _epoch_metrics(row)]
            self._log_metrics([*metrics, *(_metric(name, value, 0) for name, value in _evaluation_metrics(evaluation))])
            documents = {"recipe.json": run.recipe.model_dump(mode="json"), EVALUATION_FILE: evaluation}
            for name, content in (documents | {HISTORY_FILE: run.history}).items():
                text = json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"
                client.log_text(run_id, text, name)
            client.log_text(run_id, info.card, "card.md")
            for name, figure in plots.figures(run.history, predictions):
                client.log_figure(run_id, figure, f"plots/{name}.png")
            log_model(client, run_id, run.bundle_dir, tags={TAG_MODEL_DIGEST: info.digest})
            retry_while_busy(client.set_terminated, run_id, "FINISHED")
        self._run_id = None
        return run_id

    def _begin(
        self, client: MlflowClient, run: RunDirectory, recipe: Recipe, dataset_digest: str, *, note: bool = False
    ) -> str:
        """Continue the MLflow run of a training run, or create one; `note` writes its id into the run's directory."""
        self._client = client
        self._run_id = _continued(client, run)
        if self._run_id is not None:
            return self._run_id
        tags = {
            **_code_tags(git_commit()),
            "mmva.version": version("mmva-platform"),
            TAG_DATASET_DIGEST: dataset_digest,
            TAG_DATASET_URI: recipe.dataset,
            TAG_PRESET: recipe.preset,
        }
        experiment = experiment_id(client, self._settings)
        created = retry_while_busy(client.create_run, experiment, run_name=recipe.name, tags=tags)
        self._run_id = run_id = str(created.info.run_id)
        if note:  # first, so that --resume finds it whatever fails next
            run.write(_MLFLOW_FILE, {"run_id": run_id})
        _log_parameters(client, run_id, recipe)
        _log_dataset(client, run_id, recipe.dataset, dataset_digest)
        return run_id

    def _ended(self, error: BaseException, status: str) -> None:
        if self._client is not None and self._run_id is not None:
            cause = " ".join((str(error) or type(error).__name__).split())[:_CAUSE_LENGTH]
            with _softly():
                retry_while_busy(self._client.set_tag, self._run_id, TAG_CAUSE, cause)
                retry_while_busy(self._client.set_terminated, self._run_id, status)

    def _log_metrics(self, metrics: Sequence[Metric]) -> None:
        if self._client is not None and self._run_id is not None:
            with quiet():
                for start in range(0, len(metrics), _BATCH):
                    batch = metrics[start : start + _BATCH]
                    retry_while_busy(self._client.log_batch, self._run_id, metrics=batch)


@contextmanager
def _softly() -> Iterator[None]:
    """Log errors of MLflow, so that training continues without it; raise errors of the settings."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - a tracking server may answer anything
        reason = " ".join(str(error).split())[:200]
        log.warning("MLflow: %s; training continues, and is logged at its end", reason)


def log_training_run(run: TrainResult, settings: Settings, *, predictions: Predictions | None = None) -> str:
    """Write a finished training run to MLflow, into its tracked run if there is one; returns MLflow's id of the run.

    Its model is `runs:/<id>/model`. `predictions` are predicted and labelled VA points [N, 2] by modality, for plots;
    default: those of the evaluated split. Raises UsageError if MLflow cannot be opened or there is no bundle,
    CheckFailed if the bundle's files differ from its SHA256SUMS.
    """
    with RunLog.open(settings) as tracker:
        return tracker.finish(run, predictions)


def logged_run(run: TrainResult, settings: Settings) -> str | None:
    """MLflow's id of this run if it was completely logged before, else None."""
    with connected(settings) as client:
        found = client.search_runs(
            [experiment_id(client, settings)],
            f"tags.`{TAG_MODEL_DIGEST}` = '{run.bundle_digest}' and attributes.run_name = '{run.run_name}' "
            "and attributes.status = 'FINISHED'",
            max_results=1,
        )
    return str(found[0].info.run_id) if found else None


def _continued(client: MlflowClient, run: RunDirectory) -> str | None:
    from mlflow.exceptions import MlflowException

    if not run.storage.exists(_MLFLOW_FILE):
        return None
    run_id = str(run.read(_MLFLOW_FILE)["run_id"])
    try:
        found = client.get_run(run_id)
    except MlflowException:
        return None
    if found.info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    if TAG_CAUSE in found.data.tags:  # of an earlier end
        client.delete_tag(run_id, TAG_CAUSE)
    return run_id


def _code_tags(commit: str | None) -> dict[str, str]:
    name, _, dirty = (commit or "").partition("-")
    return {"mlflow.source.git.commit": name, "mmva.git_dirty": "true" if dirty else "false"} if name else {}


def _log_parameters(client: MlflowClient, run_id: str, recipe: Recipe) -> None:
    """Log the recipe with dotted keys and lists as JSON, cut to the length that MLflow stores."""
    from mlflow.entities import Param

    plain = flat(recipe.model_dump(mode="json"))
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in plain}
    params = [Param(name, text[:_PARAM_LENGTH]) for name, text in texts.items()]
    retry_while_busy(client.log_batch, run_id, params=params)


def _metric(name: str, value: float, step: int) -> Metric:
    from mlflow.entities import Metric

    # MLflow does not allow "@" and ">" in names.
    return Metric(name.replace("->", "_to_").replace("@", "_at_"), float(value), int(time.time() * 1000), step)


def _epoch_metrics(row: Mapping[str, Any]) -> list[Metric]:
    numbers = {key: value for key, value in row.items() if key != "epoch" and _is_number(value)}
    return [_metric(f"train/{key}", value, int(row["epoch"])) for key, value in numbers.items()]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _log_dataset(client: MlflowClient, run_id: str, uri: str, digest: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=uri.rstrip("/").rpartition("/")[2] or uri,
        digest=digest[:_DATASET_DIGEST_LENGTH],
        source_type="mmva",
        source=json.dumps({"uri": uri, "digest": digest}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _evaluation_metrics(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number of an evaluation, under its split, such as `test/image/valence/mse` (and `..._low`, `..._high`)."""
    split = evaluation["split"]
    for part in ("metrics", "matching", "retrieval", "floors", "rows", "groups"):
        for key, value in flat(evaluation[part], f"{split}/" if part == "metrics" else f"{split}/{part}/", "/"):
            path, _, leaf = key.rpartition("/")
            if _is_number(value):
                yield path if leaf == "value" else f"{path}_{leaf}" if leaf in ("low", "high") else key, value

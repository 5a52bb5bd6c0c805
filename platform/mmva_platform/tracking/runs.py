"""A finished training run, written to MLflow: what went in, what came out, and the model as a pyfunc from code.

Everything that registry and gate later rely on (digests, the evaluation) is read back from here, so a run is marked
finished only after all of it has arrived.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import ArrayLike

from mmva.bundle import BundleInfo, read_bundle_info
from mmva_platform.settings import Settings
from mmva_platform.tracking import plots
from mmva_platform.tracking.model import log_model
from mmva_platform.tracking.store import experiment_id, open_client, quiet, retry_while_busy
from mmva_platform.training.predictions import predict_split

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mmva_platform.training.trainer import TrainResult

Predictions = Mapping[str, tuple[ArrayLike, ArrayLike]]

EVALUATION_FILE: Final = "evaluation.json"
HISTORY_FILE: Final = "history.json"
TAG_MODEL_DIGEST: Final = "mmva.model_digest"
TAG_DATASET_DIGEST: Final = "mmva.dataset_digest"
TAG_DATASET_URI: Final = "mmva.dataset_uri"
TAG_PRESET: Final = "mmva.preset"
_PARAM_LENGTH, _BATCH = 500, 100
_VALIDATION: Final = ("val_total", "val_va_mse", "val_matching_mse")
_DATASET_DIGEST_LENGTH = 36  # MLflow's column; the tag holds all of it


def log_training_run(run: TrainResult, settings: Settings, *, predictions: Predictions | None = None) -> str:
    """Write a finished training run to MLflow.

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
    info = read_bundle_info(run.bundle_dir)
    evaluation = run.evaluation.to_json()
    if predictions is None:
        predictions = predict_split(run.bundle_dir, run.recipe.dataset, settings, str(evaluation["split"]))
    client = open_client(settings)
    with quiet():
        experiment = experiment_id(client, settings)
        created = retry_while_busy(lambda: client.create_run(experiment, run_name=run.run_name, tags=_tags(run, info)))
        run_id = str(created.info.run_id)
        try:
            _log_numbers(client, run_id, run, evaluation)
            _log_dataset(client, run_id, run)
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


def _tags(run: TrainResult, info: BundleInfo) -> dict[str, str]:
    commit, _, dirty = str(info.provenance.get("commit") or "").partition("-")
    code = {"mlflow.source.git.commit": commit, "mmva.git_dirty": "true" if dirty else "false"} if commit else {}
    return {
        **code,
        "mmva.version": version("mmva-platform"),
        TAG_MODEL_DIGEST: info.digest,
        TAG_DATASET_DIGEST: run.dataset_digest,
        TAG_DATASET_URI: run.recipe.dataset,
        TAG_PRESET: run.recipe.preset,
    }


def _log_numbers(client: MlflowClient, run_id: str, run: TrainResult, evaluation: Mapping[str, Any]) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    params = [Param(key, value) for key, value in flatten(run.recipe.model_dump(mode="json"))]
    metrics = [
        Metric(_metric_name(f"train/{key}"), value, now, int(row["epoch"]))
        for row in run.history
        for key, value in _numbers(row)
    ]
    metrics += [Metric(name, value, now, 0) for name, value in evaluation_metrics(evaluation)]
    for start in range(0, len(params), _BATCH):
        retry_while_busy(partial(client.log_batch, run_id, params=params[start : start + _BATCH]))
    for start in range(0, len(metrics), _BATCH):
        retry_while_busy(partial(client.log_batch, run_id, metrics=metrics[start : start + _BATCH]))


def _log_dataset(client: MlflowClient, run_id: str, run: TrainResult) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    uri = run.recipe.dataset
    dataset = Dataset(
        name=uri.rstrip("/").rpartition("/")[2] or uri,
        digest=run.dataset_digest[:_DATASET_DIGEST_LENGTH],
        source_type="mmva",
        source=json.dumps({"uri": uri, "digest": run.dataset_digest}),
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

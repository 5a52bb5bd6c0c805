"""A training run from recipe to bundle: features in, Ray Train around the loop, evaluation, model card, bundle out."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from mmva.errors import OperationFailed
from mmva_platform.settings import Settings
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory, RunFacts, create_run, resume_run

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.features import Features
    from mmva_platform.training.evaluation import Evaluation

log = logging.getLogger(__name__)
Row = dict[str, Any]
Progress = Callable[[Row], None]
SPLITS = ("train", "val", "test")
_MAX_FAILURES: Final = 3
_RESIZE_S: Final = 30.0  # how often an elastic run looks whether there is room for more workers


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        run_name: Its name.
        run_dir: Its directory: recipe.json, run.json, history.json, evaluation.json, checkpoints.
        bundle_dir: The model, from the best checkpoint.
        bundle_digest: The model's digest.
        history: One row per epoch: loss and its terms, learning rate, target scores, validation metrics, seconds.
        evaluation: On the test split.
        recipe: What was run, its name filled in.
        dataset_digest: Digest of the dataset.
    """

    run_name: str
    run_dir: Path
    bundle_dir: Path
    bundle_digest: str
    history: list[Row]
    evaluation: Evaluation
    recipe: Recipe
    dataset_digest: str


def log_epoch(row: Row) -> None:
    """The default progress: one line an epoch."""
    log.info(
        "epoch %d: loss %.4f, validation %.4f (VA MSE %.4f, matching MSE %.4f)",
        row["epoch"] + 1,
        row["loss"],
        row["val_total"],
        row["val_va_mse"],
        row["val_matching_mse"],
    )


def train(
    recipe: Recipe, settings: Settings, *, resume: str | None = None, progress: Progress = log_epoch
) -> TrainResult:
    """Train MMVA's towers on frozen embeddings.

    Args:
        recipe: What to train.
        settings: Home directory, cluster and storage.
        resume: Name of an unfinished run to continue from its last checkpoint; the recipe must be its own.
        progress: Called with each epoch's row as soon as it is known.

    Raises:
        UsageError: If the dataset, its embeddings or a split is missing, the embeddings do not fit into memory, the
            run's name is taken, or a resumed run would not compute the same.
        OperationFailed: If the run was told to stop (it has saved), or its workers failed too often.
    """
    from mmva_platform.cluster import check_feasible, quiet_ray_data, ray_session

    with ray_session(settings.cluster):
        check_feasible(recipe.worker_range[0], recipe.cpus_per_worker)
        quiet_ray_data()
        work = _work(recipe, settings)
        if resume is None:
            run = create_run(settings.runs_dir, recipe, work.facts)
        else:
            run = resume_run(settings.runs_dir, resume, recipe, work.facts)
        recipe = recipe.model_copy(update={"name": run.name})
        best, last = _fit_on_ray(run, recipe, work.config, settings, progress)
        model, features = work.trained(run, recipe, best)
        return finish(run, recipe, model, features, settings, best=best, last=last)


class _Work(Protocol):
    """One mode of training, on the driver."""

    facts: RunFacts
    config: dict[str, Any]

    def trained(self, run: RunDirectory, recipe: Recipe, best: Mapping[str, Any]) -> tuple[MMVA, Features]:
        """The best checkpoint's towers, and features of the backbones they belong to."""


def _work(recipe: Recipe, settings: Settings) -> _Work:
    if recipe.mode == "media":
        from mmva_platform.training.media.run import MediaWork

        return MediaWork(recipe, settings)
    from mmva_platform.training.features_run import FeaturesWork

    return FeaturesWork(recipe, settings)


def _fit_on_ray(
    run: RunDirectory, recipe: Recipe, data: dict[str, Any], settings: Settings, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run Ray Train; returns the content of the best and of the last checkpoint.

    Raises:
        OperationFailed: If the run was told to stop before its end, or workers failed too often.
    """
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    from mmva_platform.storage import open_storage
    from mmva_platform.training.checkpoints import Checkpoints
    from mmva_platform.training.room import Room
    from mmva_platform.training.watching import interruptible, open_channel, watch

    checkpoints = Checkpoints(
        open_storage(run.checkpoints, settings.storage), recipe.checkpoint.keep, recipe.checkpoint.metric
    )
    found = checkpoints.latest()  # says here, where somebody reads it, what the workers will go on from
    if found is not None:
        log.info("training %s: going on in epoch %d after %d steps", run.name, found[0].epoch + 1, found[0].done)
    channel = open_channel()
    config = {
        "recipe": recipe.model_dump(mode="json"),
        **data,
        "checkpoints": checkpoints,
        "channel": channel,
    }
    explained: list[Exception] = []
    try:
        worker = _worker_resources(recipe)
        room = Room(run.name, recipe.worker_range[0], worker)
        with watch(channel, progress, room) as explained, interruptible():
            _trainer(run, recipe, config, settings, worker).fit()
    except TrainingFailedError as error:
        if explained:
            raise explained[0] from error
        reason = str(error).strip().partition("\n")[0]
        raise OperationFailed(
            f"training {run.name}: workers failed more than {_MAX_FAILURES} times ({reason}); when the cause is gone, "
            f"go on with --resume {run.name}"
        ) from error
    except RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise OperationFailed(
            f"training {run.name}: the cluster went away ({reason}); go on with --resume {run.name}"
        ) from error
    found = checkpoints.latest()
    if found is None or found[0].epoch < recipe.epochs:
        where = (
            "before its first step" if found is None else f"in epoch {found[0].epoch + 1} after {found[0].done} steps"
        )
        raise OperationFailed(f"training {run.name}: stopped {where}, and saved; go on with --resume {run.name}")
    return checkpoints.best(found[1]["history"]), found[1]


def _worker_resources(recipe: Recipe) -> dict[str, float]:
    """Of one worker, by Ray's names: with a GPU where the cluster has one for each."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    return {"CPU": recipe.cpus_per_worker} | ({"GPU": 1.0} if gpus >= recipe.worker_range[0] else {})


def _trainer(
    run: RunDirectory, recipe: Recipe, config: dict[str, Any], settings: Settings, worker: Mapping[str, float]
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from mmva_platform.training.worker import train_worker

    fewest, most = recipe.worker_range
    use_gpu = "GPU" in worker
    return TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(
            # On GPUs, random states still travel between CPUs.
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            timeout_s=int(settings.cluster.stall_timeout_s),
        ),
        scaling_config=ScalingConfig(
            num_workers=most if fewest == most else (fewest, most),
            use_gpu=use_gpu,
            resources_per_worker=dict(worker),
            elastic_resize_monitor_interval_s=_RESIZE_S,
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run.path.parent),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def finish(
    run: RunDirectory,
    recipe: Recipe,
    model: MMVA,
    features: Features,
    settings: Settings,
    *,
    best: Mapping[str, Any],
    last: Mapping[str, Any],
) -> TrainResult:
    """From checkpoints to a bundle: the best weights, evaluated on test; intervals from val, reference from train.

    Args:
        run: The run's directory.
        recipe: Its recipe.
        model: The best checkpoint's towers.
        features: The dataset's features, through the backbones that belong to them.
        settings: Where backbones come from.
        best: Content of the best checkpoint.
        last: Content of the last one, which holds the whole history.
    """
    from mmva.bundle import save_bundle
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.identity import training_record
    from mmva_platform.training.card import model_card, versions
    from mmva_platform.training.evaluation import evaluate_model, intervals_from, reference_of
    from mmva_platform.training.slices import slice_figures

    model.eval()
    _attach_backbones(model, features, settings)
    evaluation = evaluate_model(model, features, "test")
    run.write("history.json", last["history"])
    run.write("evaluation.json", evaluation.to_json())
    provenance = {
        "run_name": run.name,
        "dataset": features.uri,
        "dataset_digest": features.digest,
        "rows": {name: {m: len(f.ids) for m, f in features.split(name).items()} for name in SPLITS},
        "training_data": training_record(Dataset.open(features.uri, settings), model.dims),
        "best_epoch": best["position"]["epoch"],
        "recipe": recipe.model_dump(mode="json"),
        "commit": git_commit(),
        "versions": versions(),
        "reference": reference_of(model, features),
    }
    intervals = intervals_from(model, features, "val")
    slices = slice_figures(model, features, settings)
    card = model_card(evaluation, recipe, model.backbones, intervals, provenance, slices=slices, terms=features.terms)
    digest = save_bundle(run.bundle, model, intervals=intervals, card=card, provenance=provenance)
    return TrainResult(
        run.name, run.path, run.bundle, digest, list(last["history"]), evaluation, recipe, features.digest
    )


def _attach_backbones(model: MMVA, features: Features, settings: Settings) -> None:
    """Record the backbones, after checking that they still are what computed the embeddings (CheckFailed if not)."""
    from mmva.backbones import BackboneSpec
    from mmva_platform.datasets.embedder import EncoderLoader

    load = EncoderLoader.of(settings)
    for modality, spec in features.specs.items():
        model.backbones[modality] = {
            "spec": spec,
            "fingerprint": features.fingerprints[modality],
            "dim": model.dims[modality],
        }
        model.attach_encoders({modality: load(BackboneSpec.from_json(spec))})


def git_commit() -> str | None:
    """Commit of the code that runs, if it runs from a checkout; "-dirty" where tracked files were changed."""
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

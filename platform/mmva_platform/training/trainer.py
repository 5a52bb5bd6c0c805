"""A training run from recipe to bundle: features in, Ray Train around the loop, evaluation, model card, bundle out."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmva_platform.settings import Settings
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory, RunFacts, create_run, resume_run

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.features import Features
    from mmva_platform.training.data import Triplets
    from mmva_platform.training.evaluation import Evaluation

log = logging.getLogger(__name__)
Row = dict[str, Any]
Progress = Callable[[Row], None]
SPLITS = ("train", "val", "test")


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
        UsageError: If the dataset, its embeddings or a split is missing, the run's name is taken, or a resumed run
            would not compute the same.
    """
    from mmva_platform.datasets.features import load_features
    from mmva_platform.training.data import triplets

    features = load_features(recipe.dataset, recipe.preset, settings, embeddings=recipe.embeddings)
    splits = {name: triplets(features, name) for name in ("train", "val")}
    fingerprints = {str(modality): value for modality, value in features.fingerprints.items()}
    facts = RunFacts(dataset_digest=features.digest, fingerprints=fingerprints)
    if resume is None:
        run = create_run(settings.runs_dir, recipe, facts)
    else:
        run = resume_run(settings.runs_dir, resume, recipe, facts)
    recipe = recipe.model_copy(update={"name": run.name})
    best, last = _fit_on_ray(run, recipe, splits, settings, progress)
    return finish(run, recipe, features, settings, best=best, last=last)


def _fit_on_ray(
    run: RunDirectory, recipe: Recipe, splits: Mapping[str, Triplets], settings: Settings, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run Ray Train; returns the content of the best and of the last checkpoint."""
    import ray
    from ray.util.queue import Queue

    from mmva_platform.cluster import check_feasible, quiet_ray_data, ray_session
    from mmva_platform.training.checkpoint import read_state
    from mmva_platform.training.watching import interruptible, watch

    with ray_session(settings.cluster):
        check_feasible(recipe.workers, recipe.cpus_per_worker)
        quiet_ray_data()
        queue = Queue(actor_options={"num_cpus": 0})
        config = {
            "recipe": recipe.model_dump(mode="json"),
            "progress": queue,
            **{name: ray.put(split) for name, split in splits.items()},
        }
        with interruptible(), watch(queue, progress):
            result = _trainer(run, recipe, config, settings).fit()
        best = result.get_best_checkpoint(recipe.checkpoint.metric, "min")
        assert best is not None, "every epoch reports a checkpoint"
        contents = []
        for checkpoint in (best, result.checkpoint):
            with checkpoint.as_directory() as folder:
                contents.append(read_state(Path(folder)))
        return contents[0], contents[1]


def _trainer(run: RunDirectory, recipe: Recipe, config: dict[str, Any], settings: Settings) -> Any:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    from mmva_platform.training.worker import train_worker

    # Each report waits for the controller's next look at its workers: every 2 s by default, longer than an epoch here.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    use_gpu = ray.cluster_resources().get("GPU", 0) >= recipe.workers
    return TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(
            # On GPUs, random states still travel between CPUs.
            backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
            timeout_s=int(settings.cluster.stall_timeout_s),
        ),
        scaling_config=ScalingConfig(
            num_workers=recipe.workers, use_gpu=use_gpu, resources_per_worker={"CPU": recipe.cpus_per_worker}
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run.path.parent),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=recipe.checkpoint.keep,
                checkpoint_score_attribute=recipe.checkpoint.metric,
                checkpoint_score_order="min",
            ),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def finish(
    run: RunDirectory,
    recipe: Recipe,
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
        features: The dataset's features.
        settings: Where backbones come from.
        best: Content of the best checkpoint.
        last: Content of the last one, which holds the whole history.
    """
    from mmva.bundle import save_bundle
    from mmva_platform.training.build import build_model
    from mmva_platform.training.card import model_card, versions
    from mmva_platform.training.data import triplets
    from mmva_platform.training.evaluation import evaluate_model, intervals_from, reference_of
    from mmva_platform.training.slices import slice_figures

    model = build_model(recipe, triplets(features, "train"))
    averaged = {name.removeprefix("module."): value for name, value in best["average"].items() if name != "n_averaged"}
    model.load_state_dict(averaged)
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
        "best_epoch": best["position"]["epoch"],
        "recipe": recipe.model_dump(mode="json"),
        "commit": git_commit(),
        "versions": versions(),
        "reference": reference_of(model, features),
    }
    intervals = intervals_from(model, features, "val")
    slices = slice_figures(model, features, settings)
    card = model_card(evaluation, recipe, model.backbones, intervals, provenance, slices=slices)
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

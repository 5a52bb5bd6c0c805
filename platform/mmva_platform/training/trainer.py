"""A training run from recipe to bundle: data in, Ray Train around the loop, evaluation, model card, bundle out."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, Protocol

from mmva.errors import OperationFailed, UsageError
from mmva_platform.settings import Settings
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import (
    RunDirectory,
    RunFacts,
    create_run,
    find_run,
    resume_run,
    run_facts,
    same_recipe,
    stored_recipe,
)

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva_platform.datasets.features import Features
    from mmva_platform.training.evaluation import Evaluation

log = logging.getLogger(__name__)
Row = dict[str, Any]
Progress = Callable[[Row], None]
SPLITS = ("train", "val", "test")
_QUIET_S: Final = 8.0


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        run_name: Its name.
        run_dir: Its directory on this machine, which holds the bundle.
        bundle_dir: The model, from the best epoch.
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


class Tracker(Protocol):
    """Who writes a run down while it runs, such as tracking.runs.RunLog."""

    def started(self, run: RunDirectory, recipe: Recipe, facts: RunFacts) -> None:
        """The run has its directory, new or resumed."""

    def reported(self, ranks: list[Row]) -> None:
        """The workers' reports of a moment, one for each rank; see worker.Reporter."""


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


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Say what is done now, and again every few seconds until it is."""
    done = Event()

    def repeat() -> None:
        seconds = 0.0
        while not done.wait(_QUIET_S):
            seconds += _QUIET_S
            log.info("training: still at it after %.0f s: %s", seconds, text)

    log.info("training: %s", text)
    thread = Thread(target=repeat, name="training-stage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def train(
    recipe: Recipe,
    settings: Settings,
    *,
    resume: str | None = None,
    progress: Progress = log_epoch,
    tracker: Tracker | None = None,
) -> TrainResult:
    """Train MMVA's towers on frozen embeddings, or backbones and towers on media.

    Args:
        recipe: What to train.
        settings: Home directory, cluster and storage.
        resume: Name of an unfinished run to continue from its last checkpoint; the recipe must be its own.
        progress: Called with each epoch's row as soon as it is known.
        tracker: Told of the run from its start on.

    Raises:
        UsageError: If the dataset, its embeddings or a split is missing, the embeddings do not fit into memory, the
            run's name is taken, or a resumed run would not compute the same.
        OperationFailed: If the run was told to stop, diverged, or its workers failed too often.
    """
    if resume is not None and find_run(settings, resume).finished():
        raise UsageError(f"--resume {resume}: this run is finished")
    with ExitStack() as stack:
        with stage("starting Ray, or connecting to it"):
            from mmva_platform.cluster import check_feasible, most_gpus, quiet_ray_data, ray_session

            stack.enter_context(ray_session(settings.cluster))
            from mmva_platform.training.launch import plan_workers, run_on_ray
        workers = plan_workers(recipe, most_gpus(settings.cluster))
        check_feasible(workers.fewest, recipe.cpus_per_worker)
        quiet_ray_data()
        with stage(f"reading {recipe.dataset}"):
            mode = _mode(recipe, settings)
            if resume is None:
                run = create_run(settings, recipe, mode.facts)
            else:
                run = resume_run(settings, resume, recipe, mode.facts)
        recipe = recipe.model_copy(update={"name": run.name})
        if tracker is not None:
            tracker.started(run, recipe, mode.facts)
        log.info("training %s: %s; checkpoints in %s", run.name, workers, run.storage.uri)

        def on_report(ranks: list[Row]) -> None:
            if tracker is not None:
                tracker.reported(ranks)
            for row in ranks[0]["rows"]:
                progress(row)

        fit = partial(run_on_ray, run, recipe, mode.config, workers, settings=settings, on_report=on_report)
        last = _trained(run, recipe, fit)
        with stage("evaluating the best epoch and writing the bundle"):
            model, features = mode.trained(run, recipe, last)
            return finish(run, recipe, model, features, settings, last=last)


def _trained(run: RunDirectory, recipe: Recipe, fit: Callable[[], bool]) -> dict[str, Any]:
    """Fit, and read the last checkpoint; OperationFailed if the run was told to stop before its end."""
    from mmva_platform.training.checkpoints import newest_checkpoint

    found = newest_checkpoint(*run.filesystem())  # says here, where somebody reads it, what the workers go on from
    if found is not None:
        position = found[1]["position"]
        log.info("training %s: going on in epoch %d after %d steps", run.name, position["epoch"] + 1, position["done"])
    saved = fit()
    found = newest_checkpoint(*run.filesystem())
    if found is not None and found[1]["position"]["epoch"] >= recipe.epochs:
        return found[1]
    if found is None:
        raise OperationFailed(
            f"training {run.name}: stopped before its first checkpoint; go on with --resume {run.name}"
        )
    position = found[1]["position"]
    how = "stopped and saved" if saved else "stopped, and goes on from its last checkpoint,"
    where = f"in epoch {position['epoch'] + 1} after {position['done']} steps"
    raise OperationFailed(f"training {run.name}: {how} {where}; go on with --resume {run.name}")


class _Mode(Protocol):
    """One mode of training, on the driver."""

    facts: RunFacts
    config: Any

    def trained(self, run: RunDirectory, recipe: Recipe, last: Mapping[str, Any]) -> tuple[MMVA, Features]:
        """The best epoch's towers of a checkpoint's content, and features of the backbones they belong to."""


def _mode(recipe: Recipe, settings: Settings) -> _Mode:
    if recipe.mode == "media":
        from mmva_platform.training.media.run import MediaMode

        return MediaMode(recipe, settings)
    from mmva_platform.training.features import FeaturesMode

    return FeaturesMode(recipe, settings)


def finish(
    run: RunDirectory, recipe: Recipe, model: MMVA, features: Features, settings: Settings, *, last: Mapping[str, Any]
) -> TrainResult:
    """From the best weights, or their refit, to a bundle: evaluated on test; intervals from val, reference from train.

    Args:
        run: The run's directory.
        recipe: Its recipe.
        model: The best epoch's towers.
        features: The dataset's features, through the backbones that belong to them.
        settings: Where backbones come from.
        last: Content of the last checkpoint, which holds the whole history.
    """
    from mmva.bundle import save_bundle
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.identity import training_record
    from mmva_platform.training.card import model_card, versions
    from mmva_platform.training.evaluation import evaluate_model, intervals_from, reference_of
    from mmva_platform.training.folds import refit_intervals
    from mmva_platform.training.in_process import refit
    from mmva_platform.training.slices import slice_figures

    if recipe.refit_folds:
        model = refit(recipe, features, last["best"]["epoch"])
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
        "best_epoch": last["best"]["epoch"],
        "recipe": recipe.model_dump(mode="json"),
        "commit": git_commit(),
        "versions": versions(),
        "reference": reference_of(model, features),
    }
    intervals = refit_intervals(recipe, features) if recipe.refit_folds else intervals_from(model, features, "val")
    slices = slice_figures(model, features, settings)
    card = model_card(evaluation, recipe, model.backbones, intervals, provenance, slices=slices, terms=features.terms)
    run.path.mkdir(parents=True, exist_ok=True)
    digest = save_bundle(run.bundle, model, intervals=intervals, card=card, provenance=provenance)
    run.publish_bundle()
    return TrainResult(
        run.name, run.path, run.bundle, digest, list(last["history"]), evaluation, recipe, features.digest
    )


def finished_run(name: str, settings: Settings, overrides: Callable[[dict[str, Any]], Recipe]) -> TrainResult | None:
    """What a run has that came to its end; None if it has no model yet.

    Args:
        name: Of the run.
        settings: Where runs are.
        overrides: Makes the recipe that was asked for from the run's own.

    Raises:
        UsageError: If there is no such run, or the recipe is not the run's.
        CheckFailed: If the model's files are not what its SHA256SUMS says.
    """
    from mmva.bundle import read_bundle_info
    from mmva_platform.training.evaluation import Evaluation

    run = find_run(settings, name)
    if not run.finished():
        return None
    recipe = overrides(stored_recipe(run))
    same_recipe(run, recipe)
    return TrainResult(
        run_name=name,
        run_dir=run.path,
        bundle_dir=run.bundle,
        bundle_digest=read_bundle_info(run.bundle).digest,
        history=run.read("history.json"),
        evaluation=Evaluation.from_json(run.read("evaluation.json")),
        recipe=recipe.model_copy(update={"name": name}),
        dataset_digest=run_facts(run).dataset_digest,
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

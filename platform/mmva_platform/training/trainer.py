"""A training run from recipe to bundle: read the data, train with Ray Train, evaluate, write the bundle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, Protocol

from mmva.errors import UsageError
from mmva_platform.draining import Stopped
from mmva_platform.settings import Settings
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import (
    RunDirectory,
    RunFacts,
    create_run,
    find_run,
    git_commit,
    resume_run,
    run_facts,
    same_recipe,
    stored_recipe,
)

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva_platform.datasets.features import Features
    from mmva_platform.training.evaluation.evaluate import Evaluation

log = logging.getLogger(__name__)
Row = dict[str, Any]
Progress = Callable[[Row], None]
SPLITS = ("train", "val", "test")
_QUIET_S: Final = 8.0


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    run_name: str
    run_dir: Path  # on this machine
    bundle_dir: Path  # in run_dir: the model of the best epoch
    bundle_digest: str
    history: list[Row]  # one per epoch: loss and its terms, learning rate, target scores, validation metrics, seconds
    evaluation: Evaluation  # on the test split
    recipe: Recipe  # with the run's name
    dataset_digest: str


class Tracker(Protocol):
    """Records a run while it runs, such as tracking.runs.RunLog."""

    def started(self, run: RunDirectory, recipe: Recipe, facts: RunFacts) -> None:
        """Called when the run has its directory, new or resumed."""

    def reported(self, ranks: list[Row]) -> None:
        """Called with reports that the workers made together, one per rank; see worker.Reporter."""


class Mode(Protocol):
    """The driver's part of a training mode."""

    facts: RunFacts
    data: Any  # for the workers

    def trained(self, run: RunDirectory, recipe: Recipe, last: Mapping[str, Any]) -> tuple[MMVA, Features]:
        """The best epoch's towers from a checkpoint's content, and the features of their backbones."""


def log_epoch(row: Row) -> None:
    """Log one line per epoch; the default `progress`."""
    text = "epoch %d: loss %.4f, validation %.4f (VA MSE %.4f, matching MSE %.4f)"
    log.info(text, row["epoch"] + 1, *(row[key] for key in ("loss", "val_total", "val_va_mse", "val_matching_mse")))


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Log what is being done, and again every few seconds until the block ends."""
    done = Event()

    def repeat() -> None:
        seconds = 0.0
        while not done.wait(_QUIET_S):
            seconds += _QUIET_S
            log.info("training: %s (%.0f s so far)", text, seconds)

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

    `resume` names an unfinished run to continue from its last checkpoint; the recipe must be its own. `progress` is
    called with each epoch's row, `tracker` with the run's start and each report.

    Raises:
        UsageError: If the dataset, its embeddings or a split is missing, the embeddings do not fit into memory, the
            run's name is taken, or a resumed run would not compute the same.
        Stopped: If a stop was requested.
        OperationFailed: If it diverged, or its workers failed too often.
    """
    if resume is not None and find_run(settings, resume).finished():
        raise UsageError(f"--resume {resume}: this run is finished")
    with ExitStack() as stack:
        with stage("starting Ray, or connecting to it"):
            from mmva_platform.cluster import check_feasible, most_gpus, quiet_ray_data, ray_session

            stack.enter_context(ray_session(settings.cluster))
            from mmva_platform.training.distributed.launch import plan_workers, run_on_ray
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

        fit = partial(run_on_ray, run, recipe, mode.data, workers, settings=settings, on_report=on_report)
        last = _fitted(run, recipe, fit)
        with stage("evaluating the best epoch and writing the bundle"):
            model, features = mode.trained(run, recipe, last)
            return finish(run, recipe, model, features, settings, last=last)


def _fitted(run: RunDirectory, recipe: Recipe, fit: Callable[[], str]) -> dict[str, Any]:
    """Train what is left; returns the last epoch's checkpoint. Raises Stopped if the run was stopped, saved or not."""
    from mmva_platform.training.distributed.checkpoints import newest_checkpoint

    def newest() -> tuple[dict[str, Any], int, str]:
        found = newest_checkpoint(*run.storage.filesystem())
        content = {} if found is None else found[1]
        at = content.get("position", {"epoch": 0, "done": 0})
        return content, at["epoch"], f"in epoch {at['epoch'] + 1} after {at['done']} steps"

    content, epochs, where = newest()
    if content:  # logged by the driver, because nobody reads the workers' logs
        log.info("training %s: continues %s", run.name, where)
    if epochs >= recipe.epochs:
        return content
    cut_off = fit()
    content, epochs, where = newest()
    if epochs >= recipe.epochs:
        return content
    how = f"{cut_off or 'stopped'}, before its first checkpoint"
    if content:
        how = f"{cut_off}; its last checkpoint is {where}" if cut_off else f"stopped and saved {where}"
    raise Stopped(f"training {run.name}: {how}; continue with --resume {run.name}")


def _mode(recipe: Recipe, settings: Settings) -> Mode:
    if recipe.mode == "media":
        from mmva_platform.training.media.run import MediaMode

        return MediaMode(recipe, settings)
    from mmva_platform.training.loop.features import FeaturesMode

    return FeaturesMode(recipe, settings)


def finish(
    run: RunDirectory, recipe: Recipe, model: MMVA, features: Features, settings: Settings, *, last: Mapping[str, Any]
) -> TrainResult:
    """Evaluate the best epoch's towers, or their refit, on test, calibrate intervals on val, and write the bundle.

    `features` are the dataset's, through the towers' own backbones; `last` is the content of the last checkpoint.
    """
    from mmva.models.bundle import save_bundle
    from mmva_platform.datasets.dataset import Dataset
    from mmva_platform.datasets.identity import training_record
    from mmva_platform.training.evaluation.card import model_card, versions
    from mmva_platform.training.evaluation.evaluate import evaluate_model, intervals_from, reference_of
    from mmva_platform.training.evaluation.folds import refit_intervals
    from mmva_platform.training.evaluation.slices import slice_figures
    from mmva_platform.training.loop.in_process import refit

    if recipe.refit_folds:
        model = refit(recipe, features, last["best"]["epoch"])
    model.eval()
    attach_backbones(model, features, settings)
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
    """A finished run, or None if it has no model yet. `overrides` makes the requested recipe from the run's own.

    Raises:
        UsageError: If there is no such run, or the recipe is not the run's.
        CheckFailed: If the model's files differ from its SHA256SUMS.
    """
    from mmva.models.bundle import read_bundle_info
    from mmva_platform.training.evaluation.evaluate import Evaluation

    run = find_run(settings, name)
    if not run.finished():
        return None
    recipe = overrides(stored_recipe(run))
    same_recipe(run, recipe)
    evaluation = Evaluation.from_json(run.read("evaluation.json"))
    history, digest = run.read("history.json"), read_bundle_info(run.bundle).digest
    recipe = recipe.model_copy(update={"name": name})
    return TrainResult(name, run.path, run.bundle, digest, history, evaluation, recipe, run_facts(run).dataset_digest)


def attach_backbones(model: MMVA, features: Features, settings: Settings) -> None:
    """Load and record the model's backbones. Raises CheckFailed if they are not those that computed the embeddings."""
    from mmva.backbones import BackboneSpec
    from mmva_platform.datasets.embedding.worker import EncoderLoader

    load = EncoderLoader.of(settings)
    for modality, spec in features.specs.items():
        known = {"spec": spec, "fingerprint": features.fingerprints[modality], "dim": model.dims[modality]}
        model.backbones[modality] = known
        model.attach_encoders({modality: load(BackboneSpec.from_json(spec))})

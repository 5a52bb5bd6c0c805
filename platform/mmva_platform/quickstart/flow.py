"""The quickstart: runs every verb once, on generated media, and ends with a report to look at."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmva.errors import UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking.resolve import STARTER

if TYPE_CHECKING:
    from mmva_platform.annotation.run.runner import AnnotationSummary
    from mmva_platform.training.recipe import Recipe
    from mmva_platform.training.trainer import TrainResult
    from mmva_platform.workflows import TrainOutcome

logger = logging.getLogger(__name__)
STEPS = 9
_GENERATED = (
    "The model was trained on generated media. It shows that every step works, and says nothing about moods; "
    "--model starter is the one that was trained on people's ratings"
)
_STARTER = (
    "The starter: trained on people's ratings. The model that the quickstart trained on generated media is not in it"
)
_DEFAULT = "mmva-quickstart"


class Workspace:
    """Paths of one quickstart; `root` is also the home of its runs and its registry."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.published = root / "imemnet-lookalike"  # generated, in the published layout
        self.dataset = root / "dataset"
        self.catalog = root / "catalog"  # media that the model never trained on
        self.annotation = root / "annotation"
        self.report = root / "report.html"


def fresh_workspace(asked_for: Path | None, parent: Path | None = None) -> Workspace:
    """A folder that no earlier run wrote to: the given one, else mmva-quickstart, mmva-quickstart-2, ...

    Raises UsageError if the given folder is not empty; earlier output is never touched.
    """
    root = asked_for
    if root is None:
        names = itertools.chain([_DEFAULT], (f"{_DEFAULT}-{number}" for number in itertools.count(2)))
        root = next(place for name in names if not (place := (parent or Path()) / name).exists())
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"--workdir {root}: is not empty; give a new folder, or remove that one yourself")
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    return Workspace(root)


@dataclass(frozen=True)
class QuickstartOptions:
    """The options of `mmva quickstart`."""

    workdir: Path | None = None
    catalog: str | None = None
    preset: str = "compact"
    images: int = 700
    clips: int = 700
    epochs: int = 40
    seed: int = 0


@dataclass
class _Steps:
    """Logs each step with its number and the time so far."""

    number: int = 0
    began: float = field(default_factory=time.monotonic)

    def next(self, what: str) -> None:
        self.number += 1
        logger.info("\n[%d/%d] %s  (%.0f s so far)", self.number, STEPS, what, self.seconds)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


@dataclass(frozen=True)
class QuickstartResult:
    """The text to print at the end, and the gate's reason if it refused the model."""

    closing: str
    refused: str | None


def run_quickstart(options: QuickstartOptions, settings: Settings) -> QuickstartResult:
    """Run all steps in a new folder.

    `options.catalog` is annotated with the starter, because a model of generated media does not apply to it. The demo
    catalog is annotated with the trained model, even if the gate refuses it. Raises UsageError, before anything is
    written, for a workdir that is not empty, an unusable catalog or an unknown preset.
    """
    from mmva.backbones import preset
    from mmva_platform.annotation.catalog.catalog import open_catalog
    from mmva_platform.cluster import ray_session
    from mmva_platform.workflows import report_annotation

    preset(options.preset)
    if options.catalog is not None:
        open_catalog(options.catalog, settings.storage).check()
    place = fresh_workspace(options.workdir)
    settings = settings.model_copy(update={"home": place.root})
    logger.info("quickstart: everything goes to %s", place.root)
    steps = _Steps()
    with ray_session(settings.cluster):
        _make_dataset(options, place, settings, steps)
        result = _train(options, place, settings, steps)
        outcome, refused = _make_champion(result, settings, steps)
        model = f"models:/{outcome.model_name}" + (f"/{outcome.version}" if refused else "@champion")
        summary = _annotate(options, place, STARTER if options.catalog else model, settings, steps)
    steps.next("write the report")
    note = _STARTER if options.catalog else _GENERATED
    report_annotation(str(place.annotation), place.report, settings, note=note)
    return QuickstartResult(_closing(place, outcome, summary, model, steps.seconds), refused)


def _make_dataset(options: QuickstartOptions, place: Workspace, settings: Settings, steps: _Steps) -> None:
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource
    from mmva_platform.workflows import generate_lookalike

    steps.next(f"generate a look-alike of IMEMNet-C: {options.images} images, {options.clips} clips with captions")
    generate_lookalike(place.published, images=options.images, clips=options.clips, seed=options.seed)
    steps.next("import: validate, split by song and image, write shards")
    config = ImportConfig(
        sources=(ImemnetSource(root=str(place.published), name="generated", license="ours"),),
        seed=options.seed,
        # IMEMNet's 5 % of a hundred songs would leave only five to validate and calibrate on.
        fractions=(0.7, 0.15, 0.15),
    )
    logger.info(import_dataset(config, str(place.dataset), settings).to_text())
    steps.next(f"embed every item once with the {options.preset} backbones")
    embed_dataset(str(place.dataset), options.preset, None, settings)


def quickstart_recipe(options: QuickstartOptions, dataset: str) -> Recipe:
    """The recipe of the quickstart; jobs/recipes/quickstart.yaml is the same for a cluster."""
    from mmva_platform.training.recipe import Recipe

    return Recipe(
        name="quickstart",
        dataset=dataset,
        preset=options.preset,
        epochs=options.epochs,
        seed=options.seed,
        strategy="matched",
    )


def _train(options: QuickstartOptions, place: Workspace, settings: Settings, steps: _Steps) -> TrainResult:
    from mmva_platform.training.trainer import train

    recipe = quickstart_recipe(options, str(place.dataset))
    steps.next(f"train MMVA's towers with Ray Train, {recipe.epochs} epochs")
    result = train(recipe, settings)
    steps.next("evaluate on the test split: songs and images that training never saw")
    logger.info(result.evaluation.to_markdown())
    return result


def _make_champion(result: TrainResult, settings: Settings, steps: _Steps) -> tuple[TrainOutcome, str | None]:
    from mmva.errors import CheckFailed
    from mmva_platform.tracking.promotion import promote
    from mmva_platform.workflows import track_and_register

    steps.next(
        "log the run to MLflow, register the model, make it champion: the first one needs the absolute rules only"
    )
    outcome = track_and_register(result, settings)
    try:
        verdict = promote(outcome.version, settings, "quickstart")
    except CheckFailed as error:
        logger.info(str(error))
        return outcome, str(error)
    logger.info(verdict.to_text())
    return outcome, None


def _annotate(
    options: QuickstartOptions, place: Workspace, model: str, settings: Settings, steps: _Steps
) -> AnnotationSummary:
    from mmva_platform.annotation.run.runner import annotate
    from mmva_platform.quickstart.demo_catalog import build_demo_catalog

    catalog = options.catalog
    if catalog is None:
        steps.next("gather a catalog it never trained on: real photographs, music rendered another way, sentences")
        catalog = str(build_demo_catalog(place.catalog, seed=options.seed))
    else:
        steps.next(f"take your catalog, and the starter for it: {catalog}")
    steps.next("annotate it: every item exactly once, annotated or in quarantine")
    summary = annotate(catalog, model, str(place.annotation), settings)
    logger.info(summary.to_text())
    return summary


def _closing(place: Workspace, outcome: TrainOutcome, summary: AnnotationSummary, model: str, seconds: float) -> str:
    root = _short(place.root)
    return f"""
Done in {seconds:.0f} s. Contents of {root}/:
  report.html    open this: the catalog in the VA plane, the model's figures, the quarantine
  annotation/    {summary.ok} items annotated, {summary.quarantined} in quarantine: a Delta table
  dataset/       the imported dataset, immutable, with its embeddings
  runs/{outcome.run_name}/  checkpoints and the model bundle; in MLflow {model}
  mlflow.db      runs and registry:  mlflow ui --backend-store-uri sqlite:///{root}/mlflow.db --host 127.0.0.1

Try next, with your own pictures and music, and with the model that was trained on people's ratings:
  mmva --home {root} annotate ~/Pictures --model {STARTER} --out {root}/my-pictures
"""


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

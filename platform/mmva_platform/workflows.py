"""Verbs that use several packages: train + track + register, evaluate a registered model, report on an annotation.

The command line, the job scripts and the quickstart call these functions, so that all three do the same.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmva.errors import CheckFailed, UsageError
from mmva.files import sha256_hex
from mmva_platform.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from mmva.backbones import Preset
    from mmva_platform.annotation.plan.plan import ModelInfo
    from mmva_platform.reporting.shadow import Shadow
    from mmva_platform.storage import Storage
    from mmva_platform.training.evaluation.evaluate import Evaluation
    from mmva_platform.training.recipe import Recipe
    from mmva_platform.training.sweep import SweepOptions, SweepResult
    from mmva_platform.training.trainer import TrainResult

logger = logging.getLogger(__name__)
Overrides = Callable[[dict[str, Any]], "Recipe"]

_REPORTED = [
    "id", "uri", "caption", "modality", "valence", "arousal", "valence_low", "valence_high", "arousal_low",
    "arousal_high", "mood", "duration_s", "sha256",
]  # fmt: skip


@dataclass(frozen=True)
class TrainOutcome:
    """A finished, logged and registered training run."""

    run_name: str
    run_dir: str
    run_id: str
    model_name: str
    version: int
    digest: str
    evaluation_markdown: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def to_text(self) -> str:
        """The evaluation, then the next command."""
        return (
            f"{self.evaluation_markdown}\n\n"
            f"run {self.run_name} ({self.run_dir})\n"
            f"registered as version {self.version} of {self.model_name}; next: mmva models promote {self.version}"
        )


def generate_lookalike(directory: Path, *, images: int, clips: int, seed: int) -> None:
    """Write a small look-alike of IMEMNet-C, with progress; see mmva.imemnet.generator."""
    from mmva.imemnet.generator import generate
    from mmva_platform.progress import progress

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory}: is not empty; give a new folder")
    with progress("generate", images + clips) as advance:
        done = 0

        def on_progress(so_far: int, _total: int, _what: str) -> None:
            nonlocal done
            advance(so_far - done)
            done = so_far

        generate(directory, images=images, clips=clips, seed=seed, progress=on_progress)


def sweep_and_register(sweep: SweepOptions, settings: Settings) -> tuple[SweepResult, TrainOutcome]:
    """Search the sweep's grid (each trial is a child run in MLflow), then train and register the best recipe."""
    from mmva_platform.tracking.sweeps import SweepLog
    from mmva_platform.training.sweep import sweep as search

    with SweepLog.open(sweep, settings) as tracked:
        found = search(sweep, settings, callbacks=[tracked.callback])
        tracked.log_best(found)
    return found, train_and_register(found.best, settings)


def train_and_register(recipe: Recipe, settings: Settings) -> TrainOutcome:
    """Train the recipe, in MLflow from its first step on, and register its bundle as a new version. Raises as train."""
    return _track(recipe, settings, None)


def resume_and_register(name: str, settings: Settings, overrides: Overrides) -> TrainOutcome:
    """Resume a run that ended early; a finished run is only logged and registered.

    `overrides` makes the wanted recipe from the plain values of the run's own. Raises as train, and UsageError if the
    run is already registered.
    """
    from mmva_platform.training.rundir import find_run, stored_recipe
    from mmva_platform.training.trainer import finished_run

    result = finished_run(name, settings, overrides)
    if result is None:
        return _track(overrides(stored_recipe(find_run(settings, name))), settings, name)
    _check_unregistered(result, settings)
    return track_and_register(result, settings)


def _track(recipe: Recipe, settings: Settings, resume: str | None) -> TrainOutcome:
    from mmva_platform.tracking.runs import RunLog
    from mmva_platform.training import trainer

    with RunLog.open(settings) as tracker:
        result = trainer.train(recipe, settings, resume=resume, tracker=tracker)
        run_id = tracker.finish(result)
    return _registered(result, run_id, settings)


def _check_unregistered(result: TrainResult, settings: Settings) -> None:
    from mmva_platform.tracking.registry import list_versions

    for version in list_versions(settings):
        if version.model_digest == result.bundle_digest:
            raise UsageError(
                f"--resume {result.run_name}: this run is finished and registered as version {version.version} of "
                f"{version.name}"
            )


def track_and_register(result: TrainResult, settings: Settings) -> TrainOutcome:
    """Log a finished run, unless it is already logged, and register its bundle."""
    from mmva_platform.tracking.runs import log_training_run, logged_run

    return _registered(result, logged_run(result, settings) or log_training_run(result, settings), settings)


def _registered(result: TrainResult, run_id: str, settings: Settings) -> TrainOutcome:
    from mmva_platform.tracking.registry import register

    return TrainOutcome(
        run_name=result.run_name,
        run_dir=str(result.run_dir),
        run_id=run_id,
        model_name=settings.tracking.model_name,
        version=register(run_id, settings),
        digest=result.bundle_digest,
        evaluation_markdown=result.evaluation.to_markdown(),
    )


def backbones_of(name: str, settings: Settings) -> Preset:
    """A preset by name, or the backbones of a model (a bundle's folder, runs:/... or models:/...), tuned ones included.

    Raises UsageError if there is no such preset or model; CheckFailed if the model's files are not the registered ones.
    """
    from mmva.backbones import BackboneSpec, Preset, preset
    from mmva.models.bundle import read_bundle_info
    from mmva_platform.tracking.resolve import resolve_model

    if ":" not in name and "/" not in name and not Path(name).is_dir():
        return preset(name)
    info = read_bundle_info(resolve_model(name, settings).bundle_dir)
    specs = {modality: BackboneSpec.from_json(record["spec"]) for modality, record in info.backbones.items()}
    return Preset(f"model-{info.digest[:16]}", **specs)


def choose_model(model: str | None, settings: Settings) -> str:
    """Return the given model's URI, or else that of the champion or the starter, and log which one and its quality."""
    from mmva_platform.tracking.resolve import STARTER, default_model, quality_of, resolve_model

    if model is not None:
        return model
    uri = default_model(settings)
    found = resolve_model(uri, settings)
    what = f"version {found.version} of {found.name}, the champion"
    if uri == STARTER:
        what = f"the starter, because there is no champion; its limits: {found.bundle_dir / 'card.md'}"
    logger.info("no --model: %s", "\n  ".join(line for line in (what, quality_of(found, settings)) if line))
    return uri


def evaluate_model(
    model: str,
    dataset: str,
    settings: Settings,
    *,
    split: str = "test",
    clip_split: bool = True,
    embeddings: str | None = None,
    folds: int | None = None,
) -> Evaluation:
    """Evaluate a bundle or a registered model on a dataset's split, next to the figures of a split by clip.

    With `folds`, train the model's recipe again on that many folds by group instead, and measure all rows.
    """
    from mmva.models.bundle import load_bundle
    from mmva_platform.tracking.resolve import resolve_model
    from mmva_platform.training.evaluation.evaluate import evaluate
    from mmva_platform.training.evaluation.folds import folds_of
    from mmva_platform.training.evaluation.leakage import beside_clip_split
    from mmva_platform.training.evaluation.predictions import model_features
    from mmva_platform.training.recipe import recipe_of

    bundle = resolve_model(model, settings).bundle_dir
    loaded = load_bundle(bundle, load_encoders=False)
    if folds is not None:
        recipe = recipe_of(loaded.provenance)
        features = model_features(loaded, dataset, settings, loaded.dims, embeddings)
        return folds_of(recipe, features, folds, recipe.seed)[0]
    evaluation = evaluate(bundle, dataset, settings, split, embeddings=embeddings)
    if not clip_split:
        return evaluation
    features = model_features(loaded, dataset, settings, evaluation.metrics, embeddings)
    return beside_clip_split(evaluation, loaded, features)


def report_annotation(
    out: str,
    file: Path,
    settings: Settings,
    version: int | None = None,
    *,
    roots: Sequence[str] | None = None,
    note: str | None = None,
) -> None:
    """Write a version's report, HTML and beside it JSON, with what the registry or the bundle says of its model.

    Media are shown only from below `roots`, and only if their bytes are those that were annotated. If `roots` is None,
    any annotated URI is read: use this for a person who may read the files anyway. `note` becomes a line of the page.
    Raises UsageError if there is no such version, or the file is named .json; CheckFailed if one of its files is
    damaged.
    """
    from mmva_platform.annotation.plan.plan import read_plan
    from mmva_platform.annotation.table.reader import open_annotation
    from mmva_platform.reporting.data import ReportData
    from mmva_platform.reporting.html import write_report
    from mmva_platform.reporting.runcard import run_facts

    annotation = open_annotation(out, settings.storage, version)
    record, plan = annotation.record, read_plan(annotation.storage, annotation.version)
    model = record.model
    evaluation, history, origin = _training_of(model, settings)
    provenance = _provenance_of(model, annotation.storage)
    annotations, quarantine = annotation.table(_REPORTED), annotation.table(status="quarantined")
    data = ReportData(
        annotations=annotations,
        quarantine=quarantine,
        read=_media_of(annotations, settings, roots),
        captions=_captions(annotations),
        evaluation=evaluation or (provenance or {}).get("folds", {}),  # the starter has figures by folds
        history=history,
        lineage={
            "Catalog": plan.catalog.uri,
            "Model": f"{model.name} version {model.version}" if model.version else model.name,
            "Model digest": model.digest,
            **({"Note": note} if note else {}),
            **origin,
            "Annotation": f"{annotation.uri} version {annotation.version}",
            "Annotation run": plan.run_id,
        },
        facts=run_facts(plan, record, annotations, quarantine, provenance),
    )
    write_report(file, data)


def _media_of(annotations: pa.Table, settings: Settings, roots: Sequence[str] | None) -> Callable[[str], bytes]:
    """Return a function that reads an annotated item's media by URI; see report_annotation."""
    import pyarrow.compute as pc

    from mmva_platform.annotation.catalog.roots import AllowedRoots
    from mmva_platform.annotation.media import MediaReader
    from mmva_platform.storage import read_uri

    if roots is None:
        return lambda uri: read_uri(uri, settings.storage)
    reader = MediaReader(AllowedRoots(roots), settings.storage)

    def read(uri: str) -> bytes:
        row = pc.index(annotations["uri"], uri).as_py()
        return reader.read({"uri": uri, "sha256": annotations["sha256"][row].as_py()})

    return read


def _captions(annotations: pa.Table) -> dict[str, str]:
    """Texts of captions by id, if they are in the catalog itself."""
    texts = annotations.filter(annotations["caption"].is_valid())
    return dict(zip(texts["id"].to_pylist(), texts["caption"].to_pylist(), strict=True))


def _provenance_of(model: ModelInfo, annotation: Storage) -> dict[str, Any] | None:
    """The origin of the model's bundle; None if the annotation does not hold it: one that was converted."""
    from mmva.models.bundle import read_bundle_info
    from mmva_platform.annotation.run.prepare import stored_bundle

    try:
        with stored_bundle(annotation, model) as folder:
            return read_bundle_info(folder).provenance
    except CheckFailed as error:
        logger.warning("report: %s", error)
        return None


def _training_of(model: ModelInfo, settings: Settings) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, str]]:
    """Evaluation, history and lineage of a registered model; all empty if this registry does not have it."""
    from mmva_platform.tracking.registry import show_version, training_history

    if model.version is None or model.name != settings.tracking.model_name:
        return {}, [], {}
    try:
        details = show_version(int(model.version), settings)
    except UsageError as error:
        logger.warning("report: %s", error)
        return {}, [], {}
    if details.version.model_digest != model.digest:
        logger.warning("report: version %s of %s is another model here", model.version, model.name)
        return {}, [], {}
    origin = {"Training run": details.version.run_id, "Dataset digest": details.version.dataset_digest}
    return details.evaluation, training_history(int(model.version), settings), origin


def compare_on_catalog(
    version: int | str,
    other: int | str,
    catalog: str,
    settings: Settings,
    *,
    sample: int = 200,
    seed: int = 0,
    report: Path | None = None,
) -> Shadow:
    """Annotate a sample of unlabelled media with two registered versions (number or alias) and compare the results.

    Media are read from the catalog's own place and settings.annotation.roots. The annotations stay under home and are
    reused. Raises UsageError if there is no such version, both are the same, or the catalog cannot be read.
    """
    from mmva_platform.annotation.catalog.catalog import open_catalog
    from mmva_platform.annotation.catalog.roots import catalog_root
    from mmva_platform.annotation.run.runner import annotate
    from mmva_platform.annotation.table.reader import open_annotation
    from mmva_platform.cluster import ray_session
    from mmva_platform.reporting.shadow import Shadow, compared, write_shadow_page
    from mmva_platform.storage import read_uri
    from mmva_platform.tracking.registry import show_version

    mine, theirs = (show_version(each, settings).version for each in (version, other))
    if mine.version == theirs.version:
        raise UsageError(f"compare: both are version {mine.version}; name two versions")
    whole = open_catalog(catalog, settings.storage)
    drawn, rows = whole.sample(sample, seed)
    place, table = _shadow_place(drawn, settings)
    tables = []
    with ray_session(settings.cluster):
        for each in (mine, theirs):
            out = str(place / each.model_digest[:16])
            annotate(str(table), f"models:/{each.name}/{each.version}", out, settings, roots=(catalog_root(catalog),))
            tables.append(open_annotation(out, settings.storage).table())
    agreements, furthest, only_first, only_second = compared(*tables)
    shadow = Shadow(
        first=f"version {mine.version}",
        second=f"version {theirs.version}",
        catalog=whole.uri,
        catalog_items=rows,
        sample=drawn.num_rows,
        seed=seed,
        agreements=agreements,
        furthest=furthest,
        only_first=only_first,
        only_second=only_second,
        neither=drawn.num_rows - tables[0].num_rows - len(only_second),
    )
    if report is not None:
        write_shadow_page(report, shadow, lambda uri: read_uri(uri, settings.storage), _captions(drawn))
    return shadow


def _shadow_place(drawn: pa.Table, settings: Settings) -> tuple[Path, Path]:
    """Folder of a sample's annotations, and the sample as a catalog in it; the same sample gives the same folder."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(drawn, buffer)
    place = settings.home.resolve() / "shadow" / sha256_hex(buffer.getvalue())[:16]
    place.mkdir(parents=True, exist_ok=True)
    table = place / "sample.parquet"
    table.write_bytes(buffer.getvalue())
    return place, table

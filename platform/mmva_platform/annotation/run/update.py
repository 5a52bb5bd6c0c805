"""`update` and `retry`: make the next version of an annotation from the version before and the changes since.

Unchanged items are kept by reference: a data file whose items are all unchanged is in both versions. If some of its
items have changed or are removed, the rows of the others are copied, without their embeddings. A new model on the same
backbone runs its heads over stored embeddings.
"""

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmva.errors import CheckFailed, UsageError
from mmva.inference.config import EngineInfo, Preprocessing, default_preprocessing
from mmva.inference.tables import table_of
from mmva.modalities import MEDIA_KINDS, towers_of
from mmva.models.bundle import read_bundle_info
from mmva_platform.annotation.catalog.catalog import Catalog, open_catalog
from mmva_platform.annotation.catalog.roots import catalog_root
from mmva_platform.annotation.options import RetryOptions, UpdateOptions
from mmva_platform.annotation.plan.plan import Base, ModelInfo, Plan, plan_file, read_plan
from mmva_platform.annotation.plan.planning import Stored, write_plan
from mmva_platform.annotation.plan.shards import as_duration, seconds_per_unit
from mmva_platform.annotation.plan.spool import OTHER, Spool, spooled
from mmva_platform.annotation.run.lookup import CHANGED, Lookup, QuarantineLookup
from mmva_platform.annotation.run.prepare import (
    Workers,
    choose_towers,
    model_info,
    roots_for,
    store_bundle,
    stored_bundle,
    tell,
    towers_needed,
)
from mmva_platform.annotation.run.preview import UpdatePreview, named
from mmva_platform.annotation.run.runner import finished
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.annotation.table.publish import AnnotationSummary, changes_of, summarize
from mmva_platform.annotation.table.reader import Annotation, open_annotation
from mmva_platform.settings import Settings, validate
from mmva_platform.tracking.resolve import resolve_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Update:
    """An update after all names are resolved."""

    before: Annotation  # the version to update
    plan_before: Plan
    catalog: Catalog  # of the next version
    model: ModelInfo
    bundle_dir: Path  # the model's files
    options: UpdateOptions

    @property
    def version(self) -> int:
        """Number of the next version."""
        return self.before.version + 1

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Media are cut as before, for the model's backbones, and decoded as this release does."""
        before = self.plan_before.preprocessing
        now = default_preprocessing(read_bundle_info(self.bundle_dir).backbones, before.window_s, before.hop_s)
        return now.model_copy(update={"short_side": before.short_side})

    @property
    def adopted(self) -> dict[str, EngineInfo]:
        """Engines of the version before, for towers of the same backbone: others would give other embeddings.

        If an engine is asked for by name, only that one is adopted.
        """
        then, now = self.plan_before.preprocessing.fingerprints, self.preprocessing.fingerprints
        return {
            tower: engine
            for tower, engine in self.plan_before.engines.items()
            if tower in now and then.get(tower) == now[tower] and self.options.engine in {"auto", engine.name}
        }

    def roots(self, settings: Settings) -> tuple[str, ...]:
        """Where media may be read from."""
        return roots_for((catalog_root(self.catalog.uri), *self.plan_before.roots), settings, self.options.roots)

    @property
    def same_model(self) -> bool:
        """Whether rows of the version before need no new points."""
        return self.model.digest == self.plan_before.model.digest


def update(out: str, settings: Settings, **options: Any) -> AnnotationSummary:
    """Add a version: annotate new and changed items of the catalog, drop removed ones, keep the others.

    With another model of the same backbones, the heads run over the stored embeddings of unchanged items. The same call
    again finishes an update that was interrupted. `options` are fields of UpdateOptions.

    Raises UsageError if `out` is not published, the catalog or model cannot be read, no item of the catalog is in the
    annotation, or media must be read again without `reread`; CheckFailed if another update is unfinished or another
    program wrote to the table; StorageUnavailable, StalledError and StoppedError as annotate.
    """
    begun = time.monotonic()
    chosen = validate(UpdateOptions, options, "update")
    before = open_annotation(out, settings.storage)
    with _looked_up(before, chosen, settings) as request, Workers(settings.cluster) as workers:
        if before.storage.exists(plan_file(request.version)):
            plan: Plan | None = _continued(request)
        else:
            plan = _plan_update(request, settings, workers)
        return _carried_out(before, plan, request.bundle_dir, settings, options=chosen, begun=begun)


def preview_update(out: str, settings: Settings, **options: Any) -> UpdatePreview:
    """What the same call of update would do. Reads the catalog, measures and writes nothing; raises as update.

    Media that must be read again are no error here: the preview says so.
    """
    before = open_annotation(out, settings.storage)
    with _looked_up(before, validate(UpdateOptions, options, "update"), settings) as request:
        under_way = before.storage.exists(plan_file(request.version))
        if under_way:
            _continued(request)
        request.catalog.check()
        with spooled(request.catalog, request.roots(settings), Lookup(before)) as spool:
            needed = towers_needed(spool.catalog.by_modality, request.preprocessing)
            engines, wanted = request.adopted, request.options.engine
            if wanted != "auto":
                named_one = EngineInfo.model_validate({"name": wanted})
                engines = {tower: engines.get(tower, named_one) for tower in needed}
            base, stored = _compared(request, spool, _counted(request, spool), engines)
            groups = [group for group in spool.groups if not group.stored or group.modality not in stored.reusable]
            unit_s = seconds_per_unit(engines, request.preprocessing.hop_s)
            towers = {tower for group in groups for tower in towers_needed([group.modality], request.preprocessing)}
            measured = all(tower in engines and engines[tower].items_per_s.get(engines[tower].name) for tower in towers)
            return UpdatePreview(
                out=before.uri,
                version=request.version,
                catalog=request.catalog.uri,
                model=named(request.model),
                changes=changes_of(base),
                kept=base.kept,
                copied=sum(spool.rows.values()) - sum(spool.rows[group] for group in groups) - base.kept,
                media=dict(sum((Counter({group.modality: spool.rows[group]}) for group in groups), Counter[str]())),
                engines={tower: engines[tower].name if tower in engines else "" for tower in needed},
                seconds=sum(unit_s.get(g.modality, 0.0) * spool.units[g] for g in groups) if measured else None,
                refused=_reread(request, spool, stored.reusable, engines),
                under_way=under_way,
            )


def retry(out: str, settings: Settings, **options: Any) -> AnnotationSummary:
    """Add a version in which quarantined items are tried again with the same model.

    The same call again finishes a retry that was interrupted. `options` are fields of RetryOptions. Raises UsageError
    if `out` is not published, CheckFailed if the model's files are damaged or an update is unfinished;
    StorageUnavailable, StalledError and StoppedError as annotate.
    """
    begun = time.monotonic()
    chosen = validate(RetryOptions, options, "retry")
    before = open_annotation(out, settings.storage)
    with stored_bundle(before.storage, read_plan(before.storage, before.version).model) as bundle_dir:
        if before.storage.exists(plan_file(before.version + 1)):
            plan: Plan | None = read_plan(before.storage, before.version + 1)
            if plan is not None and plan.kind != "retry":
                raise _under_way(before, plan)
        else:
            plan = _plan_retry(before, chosen)
        return _carried_out(before, plan, bundle_dir, settings, options=chosen, begun=begun)


@contextmanager
def _looked_up(before: Annotation, options: UpdateOptions, settings: Settings) -> Iterator[_Update]:
    plan = read_plan(before.storage, before.version)
    tables = options.tables or plan.catalog.tables
    catalog = open_catalog(options.catalog or plan.catalog.uri, settings.storage, tables)
    if options.model is None:
        with stored_bundle(before.storage, plan.model) as bundle_dir:
            yield _Update(before, plan, catalog, plan.model, bundle_dir, options)
        return
    resolved = resolve_model(options.model, settings)
    yield _Update(before, plan, catalog, model_info(resolved), resolved.bundle_dir, options)


def _carried_out(
    before: Annotation, plan: Plan | None, bundle_dir: Path, settings: Settings, *, options: RetryOptions, begun: float
) -> AnnotationSummary:
    if plan is None:
        logger.info("%s: nothing has changed since version %d", before.uri, before.version)
        return summarize(before.uri, before.record, None, seconds=time.monotonic() - begun)
    return finished(before.storage, plan, bundle_dir, settings, options=options, begun=begun)


def _continued(request: _Update) -> Plan:
    """The existing plan of the next version; raises CheckFailed if it is another update's."""
    plan = read_plan(request.before.storage, request.version)
    mine = ("update", request.catalog.uri, request.catalog.tables, request.model.digest)
    wanted = request.options.engine
    others = {engine.name for engine in plan.engines.values()} - {wanted} if wanted != "auto" else set()
    if (plan.kind, plan.catalog.uri, plan.catalog.tables, plan.model.digest) != mine or others:
        raise _under_way(request.before, plan)
    return plan


def _under_way(before: Annotation, plan: Plan) -> CheckFailed:
    return CheckFailed(
        f"{before.uri}: version {plan.version} is under way: {plan.kind} of {plan.catalog.uri} with {plan.model.name} "
        f"{plan.model.version or plan.model.digest[:12]}; `mmva annotations resume` finishes it"
    )


def _plan_update(request: _Update, settings: Settings, workers: Workers) -> Plan | None:
    """Read the catalog and write the plan of the next version; None if nothing has changed."""
    before, options = request.before, request.options
    request.catalog.check()
    with spooled(request.catalog, request.roots(settings), Lookup(before)) as spool:
        tell(spool.catalog)
        counted = _counted(request, spool)
        engines = choose_towers(
            request.bundle_dir,
            towers_needed(spool.catalog.by_modality, request.preprocessing),
            before.storage,
            settings,
            workers=workers,
            wanted=options.engine,
            adopted=request.adopted,
        )
        base, stored = _compared(request, spool, counted, engines)
        if (refused := _reread(request, spool, stored.reusable, engines)) and not options.reread:
            raise UsageError(refused)
        if not base.replaced and spool.catalog.items == base.kept:
            return None
        store_bundle(before.storage, request.bundle_dir, request.model)
        return write_plan(
            before.storage,
            spool,
            request.model,
            request.preprocessing,
            engines=engines,
            shard_items=options.shard_items,
            version=request.version,
            kind="update",
            base=base,
            stored=stored,
            roots=request.roots(settings),
            command=options.command,
            keep_windows=request.plan_before.keep_windows,
        )


def _plan_retry(before: Annotation, options: RetryOptions) -> Plan | None:
    """Write the plan of a retry; None if nothing is quarantined."""
    quarantine = before.table(status="quarantined")
    if not quarantine.num_rows:
        return None
    plan = read_plan(before.storage, before.version)
    # Without sizes and etags: a file may have been repaired since.
    unknown = {name: pa.nulls(quarantine.num_rows) for name in ("bytes", "etag")}
    known = {name: quarantine[name] for name in ("id", "uri", "modality", "caption")}
    catalog = Catalog.of_table(plan.catalog.uri, table_of(known | unknown, CATALOG_SCHEMA))
    with spooled(catalog, None, QuarantineLookup(quarantine)) as spool:
        return write_plan(
            before.storage,
            spool,
            plan.model,
            plan.preprocessing,
            engines=plan.engines,
            shard_items=options.shard_items,
            version=before.version + 1,
            kind="retry",
            base=Base(
                replaced=tuple(file.path for file in before.files("quarantined")),
                same_model=True,
                kept=before.count("ok"),
                unchanged=before.count("ok") + before.count("quarantined"),
                new=0,
                changed=0,
                removed=0,
            ),
            catalog=plan.catalog,
            roots=plan.roots,
            command=options.command,
            keep_windows=plan.keep_windows,
        )


def _counted(request: _Update, spool: Spool) -> tuple[Counter[str], int]:
    """Unchanged items in each data file of the version before, and the number of changed items.

    Raises UsageError if no item of the catalog is in that version.
    """
    places = _places(spool)
    # base_row is CHANGED for items that the version before holds with another digest
    changed = sum(
        pc.sum(pc.equal(chunk["base_row"], CHANGED)).as_py() or 0
        for group in spool.groups
        if not group.stored
        for chunk in spool.chunks(group)
    )
    if request.before.all_files and not places and not changed:
        raise UsageError(
            f"{request.before.uri}: no item of {request.catalog.uri} is in it; annotate that catalog to another output"
        )
    return places, changed


def _compared(
    request: _Update, spool: Spool, counted: tuple[Counter[str], int], engines: Mapping[str, EngineInfo]
) -> tuple[Base, Stored]:
    """What the next version takes from the one before."""
    (places, changed), before = counted, request.before
    reusable = _reusable(request.plan_before, request.preprocessing, engines)
    kept = _kept(request, places, reusable)
    known = places.total()
    base = Base(
        replaced=tuple(file.path for file in before.all_files if file.path not in kept),
        same_model=request.same_model,
        kept=sum(file.rows for file in before.all_files if file.path in kept),
        unchanged=known,
        new=spool.catalog.items - known - changed,
        changed=changed,
        removed=before.count("ok") + before.count("quarantined") - known - changed,
    )
    return base, Stored(kept, reusable)


def _places(spool: Spool) -> Counter[str]:
    """Number of unchanged items in each data file of the version before."""
    found: Counter[str] = Counter()
    for group in spool.groups:
        if group.stored:
            for chunk in spool.chunks(group):
                counted = chunk["base_file"].value_counts()
                found.update({entry["values"]: entry["counts"] for entry in counted.to_pylist()})
    return found


def _kept(request: _Update, unchanged: Mapping[str, int], reusable: set[str]) -> set[str]:
    """Data files that both versions share: all of their items are unchanged, and their points are from this model."""
    return {
        file.path
        for file in request.before.all_files
        if unchanged.get(file.path) == file.rows
        and (file.modality if file.modality in MEDIA_KINDS else OTHER) in reusable
        and (request.same_model or file.status == "quarantined")
    }


def _reusable(plan: Plan, preprocessing: Preprocessing, engines: Mapping[str, EngineInfo]) -> set[str]:
    """Modalities whose stored embeddings this model and these engines would compute again, and items without a
    modality.
    """
    then, now = plan.preprocessing.fingerprints, preprocessing.fingerprints
    same_decoders = plan.preprocessing.decoders == preprocessing.decoders
    other = {tower for tower, info in plan.engines.items() if tower in engines and engines[tower].name != info.name}
    return {OTHER} | {
        kind
        for kind in MEDIA_KINDS
        if (same_decoders or kind == "caption")
        and all(then.get(tower) == now.get(tower) and tower not in other for tower in towers_of(kind))
    }


def _reread(request: _Update, spool: Spool, reusable: Collection[str], engines: Mapping[str, EngineInfo]) -> str:
    """Why stored items must be read again, and for how long; empty if none must."""
    again = [group for group in spool.groups if group.stored and group.modality not in reusable]
    if not again:
        return ""
    unit_s = seconds_per_unit(engines, request.preprocessing.hop_s)
    seconds = sum(unit_s.get(group.modality, 0.0) * spool.units[group] for group in again)
    kinds = ", ".join(sorted({group.modality for group in again}))
    before, now = request.plan_before.preprocessing, request.preprocessing
    towers = {tower for group in again for tower in towers_of(group.modality)}
    if before.decoders != now.decoders:
        why = f"this release decodes {kinds} differently"
    elif any(before.fingerprints.get(tower) != now.fingerprints.get(tower) for tower in towers):
        why = f"the model has another backbone for {kinds}"
    else:
        why = f"engine {request.options.engine} is not the one that embedded {kinds}"
    return (
        f"{request.before.uri}: {why}, so that {sum(spool.rows[group] for group in again)} items must be read again, "
        f"about {as_duration(seconds)} of one worker; --reread does it"
    )

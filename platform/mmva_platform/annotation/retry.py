"""Another try at what is quarantined: a run of the same layout in `retries/0001` (0002, ...) of the first.

Its items are exactly what the generation before it quarantined; model, preprocessing and engines are the first run's.
Readers take annotations from all published generations and the quarantine from the last.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.catalog import Catalog
from mmva_platform.annotation.execute import carry_out
from mmva_platform.annotation.plan import PLAN_FILE, ItemReader, Plan, make_plan, read_plan, settle_plan
from mmva_platform.annotation.publish import Manifest, generations, read_file, read_manifest, retry_folder
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.annotation.summary import AnnotationSummary
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

if TYPE_CHECKING:
    from mmva_platform.tracking.registry import ResolvedModel

logger = logging.getLogger(__name__)


def retry(
    out: str,
    settings: Settings,
    *,
    model: str | None = None,
    workers: int | None = None,
    shard_items: int | None = None,
) -> AnnotationSummary:
    """Annotate what a published run has quarantined, as far as it can be annotated now.

    Args:
        out: The run. The same call again finishes a retry that was cut short.
        settings: Storage, cluster, registry.
        model: The run's model, if it is not in the registry under the name and version of the plan.
        workers: Actors; one a CPU by default.
        shard_items: Most images a shard, or as much other work; by the number of items if None.

    Returns:
        What became of the retried items; of none, if nothing is quarantined.

    Raises:
        UsageError: If the run is not published, or its model is neither registered nor given.
        CheckFailed: If `model` is another than the run's.
        StorageUnavailable, StalledError: When the retry cannot go on; what is committed stays.
    """
    begun = time.monotonic()
    storage = open_storage(out, settings.storage)
    places = generations(storage, settings.storage)
    place = open_storage(storage.join(retry_folder(len(places))), settings.storage)
    if not place.exists(PLAN_FILE) and not read_manifest(places[-1]).totals.quarantined:
        logger.info("%s: nothing is quarantined, nothing to retry", storage.uri)
        return _summary(storage, read_plan(storage), None, 0, time.monotonic() - begun)
    plan = read_plan(places[-1])
    resolved = _the_model(plan, model, settings)
    if place.exists(PLAN_FILE):
        plan = read_plan(place)
    else:
        plan, contents = plan_retry(places[-1], plan, shard_items)
        plan = plan.model_copy(update={"command": ("mmva", "annotations", "retry", storage.uri)})
        plan = settle_plan(place, plan, contents)
    for engine in plan.engines.values():
        if engine.file is not None and not place.exists(engine.file):
            place.put_if_absent(engine.file, places[-1].read(engine.file))
    manifest, resumed = carry_out(place, plan, resolved.bundle_dir, settings, workers=workers)
    return _summary(storage, plan, manifest, resumed, time.monotonic() - begun)


def plan_retry(place: Storage, plan: Plan, shard_items: int | None) -> tuple[Plan, dict[str, bytes]]:
    """The generation after a published one: its plan and its chapters' files; nothing is written.

    Args:
        place: The published generation.
        plan: Its plan.
        shard_items: As for make_plan.
    """
    items = quarantined_items(place, plan)
    catalog = Catalog(uri=plan.catalog.uri, items=items, skipped={}, duplicates=0, duplicate_ids=())
    cut, contents = make_plan(catalog, plan.model, plan.preprocessing, shard_items)
    # What the first plan says of the work holds here too, whatever else it says.
    changes = {name: getattr(cut, name) for name in ("catalog", "chapters", "bounds")} | {
        "run_id": uuid.uuid4().hex,
        "created_at": datetime.now(UTC),
        "base": None,
        "generation": plan.generation + 1,
    }
    return plan.model_copy(update=changes), contents


def quarantined_items(place: Storage, plan: Plan) -> pa.Table:
    """Planned items that a published generation quarantined (CATALOG_SCHEMA).

    Sizes and etags are not kept: a file may have been repaired since.
    """
    read = ItemReader(place, plan)
    found = [CATALOG_SCHEMA.empty_table()]
    for commit in read_manifest(place).shards:
        if commit.quarantine is not None:
            bad = read_file(place, commit.quarantine)["id"].combine_chunks()
            planned = read(commit.shard)
            found.append(planned.filter(pc.is_in(planned["id"], value_set=bad)).select(CATALOG_SCHEMA.names))
    items = pa.concat_tables(found).combine_chunks()
    return _emptied(items, ("bytes", "etag"))


def _emptied(items: pa.Table, names: Iterable[str]) -> pa.Table:
    for name in names:
        field = items.schema.field(name)
        items = items.set_column(items.schema.get_field_index(name), field, pa.nulls(items.num_rows, field.type))
    return items


def _the_model(plan: Plan, model: str | None, settings: Settings) -> ResolvedModel:
    """The bundle with the plan's digest."""
    from mmva_platform.tracking.registry import resolve_model

    registered = f"models:/{plan.model.name}/{plan.model.version}"
    if model is None and plan.model.version is None:
        raise UsageError(
            f"the run's model {plan.model.name} ({plan.model.digest[:12]}) is not registered; name it with --model"
        )
    resolved = resolve_model(model or registered, settings)
    if resolved.digest != plan.model.digest:
        raise CheckFailed(
            f"a retry is done with the run's own model: its digest is {plan.model.digest[:12]}, that of "
            f"{model or registered} is {resolved.digest[:12]}; name the model with --model"
        )
    return resolved


def _summary(
    storage: Storage, plan: Plan, manifest: Manifest | None, resumed: int, seconds: float
) -> AnnotationSummary:
    totals = manifest and manifest.totals
    return AnnotationSummary(
        out=storage.uri,
        run_id=plan.run_id,
        items=totals.items if totals else 0,
        ok=totals.ok if totals else 0,
        quarantined=totals.quarantined if totals else 0,
        by_modality=totals.by_modality if totals else {},
        causes=totals.causes if totals else {},
        duplicates=0,
        skipped={},
        shards=len(plan.shards) if manifest else 0,
        resumed_shards=resumed,
        seconds=round(seconds, 2),
        work=totals.work if totals else {},
    )

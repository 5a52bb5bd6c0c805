"""Another try at what is quarantined: a run of the same layout in `retries/0001` (0002, ...) of the first.

Its items are exactly what the generation before it quarantined; model, preprocessing and engines are the first run's.
Readers take annotations from all published generations and the quarantine from the last.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from mmva_platform.annotation.catalog import Catalog
from mmva_platform.annotation.execute import carry_out
from mmva_platform.annotation.plan import PLAN_FILE, ItemReader, Plan, read_plan
from mmva_platform.annotation.planning import write_plan
from mmva_platform.annotation.publish import generations, read_file, read_manifest, retry_folder
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.annotation.spool import spooled
from mmva_platform.annotation.stored_model import stored_bundle
from mmva_platform.annotation.summary import AnnotationSummary, summarize
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

logger = logging.getLogger(__name__)


def retry(
    out: str, settings: Settings, *, workers: int | None = None, shard_items: int | None = None
) -> AnnotationSummary:
    """Annotate what a published run has quarantined, as far as it can be annotated now, with the run's own model.

    Args:
        out: The run. The same call again finishes a retry that was cut short.
        settings: Storage, cluster.
        workers: Actors; one a CPU by default.
        shard_items: Most items of a shard; about a minute of work if None.

    Returns:
        What became of the retried items; zeros if nothing is quarantined.

    Raises:
        UsageError: If the run is not published.
        CheckFailed: If the model's files in the run are damaged.
        StorageUnavailable, StalledError: When the retry cannot continue; what is committed stays.
    """
    begun = time.monotonic()
    storage = open_storage(out, settings.storage)
    places = generations(storage, settings.storage)
    place = open_storage(storage.join(retry_folder(len(places))), settings.storage)
    if place.exists(PLAN_FILE):
        plan = read_plan(place)
    elif read_manifest(places[-1]).totals.quarantined:
        command = ("mmva", "annotations", "retry", storage.uri)
        plan = plan_retry(places[-1], place, shard_items, command)
    else:
        logger.info("%s: nothing is quarantined, nothing to retry", storage.uri)
        return summarize(storage.uri, read_plan(storage), None, resumed=0, seconds=time.monotonic() - begun)
    for engine in plan.engines.values():
        if engine.file is not None and not place.exists(engine.file):
            place.put_if_absent(engine.file, places[-1].read(engine.file))
    with stored_bundle(storage, plan.model) as bundle_dir:
        manifest, resumed = carry_out(place, plan, bundle_dir, settings, workers=workers, max_errors="100%")
    return summarize(storage.uri, plan, manifest.totals, resumed=resumed, seconds=time.monotonic() - begun)


def plan_retry(place: Storage, target: Storage, shard_items: int | None = None, command: Iterable[str] = ()) -> Plan:
    """Write the plan of the generation after a published one.

    Args:
        place: The published generation.
        target: Where the retry's plan goes.
        shard_items: As for write_plan.
        command: As typed.
    """
    plan = read_plan(place)
    with spooled(Catalog.of_table(plan.catalog.uri, quarantined_items(place, plan))) as spool:
        return write_plan(
            target,
            spool,
            plan.model,
            plan.preprocessing,
            engines=plan.engines,
            shard_items=shard_items,
            roots=plan.roots,
            command=tuple(command),
            keep_windows=plan.keep_windows,
            generation=plan.generation + 1,
        )


def quarantined_items(place: Storage, plan: Plan) -> pa.Table:
    """Planned items that a published generation quarantined (CATALOG_SCHEMA).

    Sizes and etags are not kept: a file may have been repaired since.
    """
    read = ItemReader(place, plan)
    found = [CATALOG_SCHEMA.empty_table()]
    for commit in read_manifest(place).shards:
        if commit.quarantine is not None:
            bad = read_file(place, commit.quarantine)["id"].cast(pa.large_string()).combine_chunks()
            planned = read(commit.shard)
            found.append(planned.filter(pc.is_in(planned["id"], value_set=bad)).select(CATALOG_SCHEMA.names))
    return _emptied(pa.concat_tables(found), ("bytes", "etag"))


def _emptied(items: pa.Table, names: Iterable[str]) -> pa.Table:
    for name in names:
        field = items.schema.field(name)
        items = items.set_column(items.schema.get_field_index(name), field, pa.nulls(items.num_rows, field.type))
    return items

"""Catalogs and plans for tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmva.errors import MediaError
from mmva.inference.config import Preprocessing
from mmva.inference.items import Item, error_table
from mmva.inference.tables import ROW_SCHEMA, WINDOW_SCHEMA, Predicted
from mmva_platform.annotation.catalog.catalog import Catalog, open_catalog
from mmva_platform.annotation.plan.plan import ItemReader, ModelInfo, Plan
from mmva_platform.annotation.plan.planning import write_plan
from mmva_platform.annotation.plan.spool import spooled
from mmva_platform.annotation.run.annotator import stamped
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.annotation.table.commit import commit_shard
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Storage


def iter_items(storage: Storage, plan: Plan) -> Iterator[pa.Table]:
    """All planned items in order, one table a shard."""
    return map(ItemReader(storage, plan), plan.shards)


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Catalog rows; what a row leaves out is null."""
    return pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA)


def read_all(uri: str | Path, settings: StorageSettings | None = None) -> pa.Table:
    """A whole catalog in memory."""
    return pa.concat_tables(open_catalog(str(uri), settings or StorageSettings()).batches())


def quarantine_all(storage: Storage, plan: Plan, shard: str) -> None:
    """Commit a shard of which no item could be annotated."""
    items = ItemReader(storage, plan)(shard)
    error = MediaError("too-many-bytes", "x: 9 bytes, the limit is 8", stage="fetch")
    errors = error_table([Item(name, None, "image", error=error) for name in items["id"].to_pylist()])
    result = stamped(Predicted(ROW_SCHEMA.empty_table(), WINDOW_SCHEMA.empty_table(), errors), plan, shard, items)
    work = {"quarantined": items.num_rows}
    commit_shard(storage, plan, shard, replace(result, work=work, seconds={"fetch": 0.5}))


def plan_of(
    storage: Storage,
    catalog: Catalog | pa.Table,
    model: ModelInfo,
    preprocessing: Preprocessing,
    shard_items: int | None = None,
    **options: Any,
) -> Plan:
    """Write the plan of a catalog, or of rows below /m."""
    if isinstance(catalog, pa.Table):
        catalog = Catalog.of_table("/m", catalog)
    with spooled(catalog) as spool:
        options = {"roots": (catalog.uri,)} | options
        return write_plan(storage, spool, model, preprocessing, shard_items=shard_items, **options)

"""`convert`: makes version 0 of a table from an annotation of the earlier format (schema 2), which is not changed."""

import io
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmva.errors import CheckFailed, UsageError
from mmva.files import sha256_hex
from mmva.inference.tables import WINDOW_SCHEMA, table_of
from mmva_platform.annotation import schema
from mmva_platform.annotation.plan.plan import INTERNAL, Plan, plan_file, read_plan, version_folder
from mmva_platform.annotation.plan.planning import settled, write_parts
from mmva_platform.annotation.plan.spool import as_new
from mmva_platform.annotation.run.annotator import nested_windows
from mmva_platform.annotation.table.commit import ShardResult, commit_shard, committed_shards, read_commits
from mmva_platform.annotation.table.publish import AnnotationSummary, publish, summarize
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, StorageNotFound, open_storage, probe_put_if_absent

_MANIFEST: Final = "MANIFEST.json"
_CATALOG_KEYS: Final = ("uri", "items", "by_modality", "skipped", "duplicates", "duplicate_ids")


@dataclass(frozen=True)
class _OldShard:
    """A shard of the old format: its file of rows (annotated or quarantined) and, if any, of window embeddings."""

    place: Storage
    status: str
    rows: dict[str, Any]
    windows: dict[str, Any] | None = None


def convert(old: str, out: str, settings: Settings) -> AnnotationSummary:
    """Write an annotation of schema 2, with its retries, as a table; the same call again resumes.

    The old format has no model, so `retry` needs a version that `update --model` made. Raises UsageError if `old` is
    not published or not of schema 2, or `out` holds something else, CheckFailed if a file of `old` is damaged.
    """
    begun = time.monotonic()
    source, target = open_storage(old, settings.storage), open_storage(out, settings.storage)
    described = _json(source, "plan.json")
    if described.get("annotation_version") != 2:
        raise UsageError(f"{source.uri}: not an annotation of schema 2; only that can be converted")
    places = _generations(source, settings)
    described["run_id"] = _json(places[-1], "plan.json")["run_id"]  # identifies the last retry
    shards = list(_old_shards(places))
    items = as_new(_old_items(source))
    probe_put_if_absent(target)
    plan = read_plan(target) if target.exists(plan_file(0)) else _make_plan(source, target, described, shards, items)
    if (plan.kind, plan.run_id) != ("convert", described["run_id"]):
        raise UsageError(f"{target.uri}: holds another annotation, or this one without its last retry")
    done = committed_shards(target, 0)
    for name, shard in zip(plan.shards, shards, strict=True):
        if name not in done:
            commit_shard(target, plan, name, _result(shard, items))
    record = publish(target, plan, read_commits(target, 0, plan.shards))
    return summarize(target.uri, record, plan, resumed=len(done), seconds=time.monotonic() - begun)


def _make_plan(
    source: Storage, target: Storage, described: dict[str, Any], shards: list[_OldShard], items: pa.Table
) -> Plan:
    for engine in described["engines"].values():
        if engine.get("file"):
            target.put_if_absent(f"{INTERNAL}/{engine['file']}", source.read(engine["file"]))
    tables = (_items_of(items, _read(shard.place, shard.rows)["id"]) for shard in shards)
    parts = tuple(write_parts(target, version_folder(0), tables, source.uri))
    same = ("run_id", "created_at", "model", "preprocessing", "engines", "roots", "command", "keep_windows")
    plan = Plan.model_validate(
        {name: described[name] for name in same}
        | {
            "annotation_version": schema.ANNOTATION_VERSION,
            "catalog": {name: described["catalog"][name] for name in _CATALOG_KEYS},
            "version": 0,
            "kind": "convert",
            "parts": parts,
        }
    )
    return settled(target, plan)


def _generations(source: Storage, settings: Settings) -> list[Storage]:
    places = [source]
    while (place := open_storage(source.join(f"retries/{len(places):04d}"), settings.storage)).exists(_MANIFEST):
        places.append(place)
    return places


def _old_shards(places: Iterable[Storage]) -> Iterator[_OldShard]:
    """Annotated shards of the run and of all retries, then the quarantine of the last one."""
    quarantined: list[_OldShard] = []
    for place in places:
        commits = _json(place, _MANIFEST)["shards"]
        yield from (_OldShard(place, "ok", one["data"], one["windows"]) for one in commits if one["data"])
        quarantined = [_OldShard(place, "quarantined", one["quarantine"]) for one in commits if one["quarantine"]]
    yield from quarantined


def _result(shard: _OldShard, items: pa.Table) -> ShardResult:
    rows = _read(shard.place, shard.rows)
    mine = _items_of(items, rows["id"])
    columns: dict[str, Any] = {name: rows[name] for name in rows.column_names}
    columns |= {"caption": mine["caption"], "item_digest": mine["item_digest"]}
    if shard.status == "quarantined":
        quarantined = table_of(columns, schema.QUARANTINE_SCHEMA)
        return ShardResult(schema.ANNOTATION_SCHEMA.empty_table(), quarantined, work={"quarantined": rows.num_rows})
    columns |= {column.name: pa.nulls(rows.num_rows, column.type) for column in schema.REFERENCE_SCHEMA}
    windows = WINDOW_SCHEMA.empty_table()
    if shard.windows:
        stored = _read(shard.place, shard.windows)
        windows = table_of({name: stored[name] for name in WINDOW_SCHEMA.names}, WINDOW_SCHEMA)
    embeddings = {name: rows[name] for name in ("id", "embedding")} | {"windows": nested_windows(windows, rows["id"])}
    ok = table_of(columns, schema.ANNOTATION_SCHEMA)
    stored_embeddings = table_of(embeddings, schema.EMBEDDING_FILE_SCHEMA)
    return ShardResult(ok, schema.QUARANTINE_SCHEMA.empty_table(), stored_embeddings, {"carried": ok.num_rows})


def _old_items(source: Storage) -> pa.Table:
    """All planned items of the run itself (CATALOG_SCHEMA)."""
    tables = [schema.CATALOG_SCHEMA.empty_table()]
    for entry in source.list("plan/"):
        if entry.path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(source.read(entry.path)), columns=schema.CATALOG_SCHEMA.names)
            tables.append(table_of({name: table[name] for name in schema.CATALOG_SCHEMA.names}, schema.CATALOG_SCHEMA))
    return pa.concat_tables(tables).combine_chunks()


def _items_of(items: pa.Table, ids: pa.ChunkedArray) -> pa.Table:
    at_N = pc.index_in(ids.cast(pa.large_string()), value_set=items["id"].combine_chunks())
    if at_N.null_count:
        raise CheckFailed(f"{ids.filter(pc.is_null(at_N))[0].as_py()}: is annotated but not in the plan")
    return items.take(pa.array(np.asarray(at_N)))


def _read(place: Storage, record: dict[str, Any]) -> pa.Table:
    data = place.read(record["path"])
    if sha256_hex(data) != record["sha256"]:
        raise CheckFailed(f"{place.join(record['path'])}: changed since it was written (SHA-256 differs)")
    return pq.read_table(io.BytesIO(data))


def _json(storage: Storage, path: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(storage.read(path))
    except StorageNotFound:
        raise UsageError(f"{storage.uri}: no published annotation of the earlier format ({path} is missing)") from None
    except ValueError as error:
        raise UsageError(f"{storage.join(path)}: not JSON ({error})") from None
    return found

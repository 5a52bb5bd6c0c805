"""Annotations of made-up rows, committed shard by shard, for the tests of plan, commit, publish, read and verify."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmva.inference.config import Preprocessing
from mmva_platform.annotation.plan.plan import ModelInfo, Plan
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, EMBEDDING_FILE_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.annotation.table.commit import (
    CommitRecord,
    DataFile,
    ShardResult,
    commit_shard,
    read_commit,
    read_commits,
)
from mmva_platform.annotation.table.publish import VersionRecord, publish
from mmva_platform.storage import Storage
from mmva_platform.storage.s3 import S3Storage

from .planned import iter_items, plan_of, table_of

MODEL = ModelInfo(name="mmva", version="3", digest="d" * 64)
PREPROCESSING = Preprocessing(fingerprints={"image": "f" * 64}, window_s=3.0, hop_s=1.5, short_side=224)

Rows = list[dict[str, Any]]

_FINISHED: dict[tuple[type[Storage], str], tuple[Plan, pa.Table, dict[str, bytes]]] = {}


def catalog_of(ids: list[str]) -> pa.Table:
    """Images below /m."""
    return table_of([{"id": name, "uri": f"/m/{name}.png", "modality": "image", "bytes": 9} for name in ids])


def planned(storage: Storage, count: int = 40, **changes: Any) -> tuple[Plan, pa.Table]:
    """The plan of images i00, i01, ... in shards of 8, and its items."""
    values = {"model": MODEL, "preprocessing": PREPROCESSING, "shard_items": 16} | changes
    plan = plan_of(storage, catalog_of([f"i{n:02d}" for n in range(count)]), **values)
    return plan, pa.concat_tables(iter_items(storage, plan))


def items_of(plan: Plan, items: pa.Table, shard: str) -> Rows:
    """Items of a shard."""
    return items.slice(sum(plan.rows[: int(shard)]), plan.rows[int(shard)]).to_pylist()


def result_of(ok: Rows, bad: Rows, embeddings: Rows | None = None) -> ShardResult:
    """The result of a shard; a vector of the id's number for each annotated row by default."""
    if embeddings is None:
        embeddings = [embedding(row["id"]) for row in ok]
    return ShardResult(
        pa.Table.from_pylist(ok, ANNOTATION_SCHEMA),
        pa.Table.from_pylist(bad, QUARANTINE_SCHEMA),
        pa.Table.from_pylist(embeddings, EMBEDDING_FILE_SCHEMA),
        work={"media": len(ok), "quarantined": len(bad)},
    )


def embedding(identity: str) -> dict[str, Any]:
    """A row of a file of embeddings."""
    return {"id": identity, "embedding": [float(identity.removeprefix("i")), 2.0], "windows": None}


def annotation(item: dict[str, Any], plan: Plan, shard: str, valence: float = 0.5) -> dict[str, Any]:
    """A row of an annotated item."""
    known = {
        "modality": "image",
        "valence": valence,
        "arousal": 0.5,
        "mood": "neutral",
        "sha256": "0" * 64,
        "model_name": plan.model.name,
        "model_version": plan.model.version,
        "model_digest": plan.model.digest,
        "run_id": plan.run_id,
        "shard": shard,
        "annotated_at": plan.created_at,
    }
    taken = {name: item[name] for name in ("id", "uri", "caption", "item_digest")}
    return dict.fromkeys(ANNOTATION_SCHEMA.names) | taken | known


def quarantine(item: dict[str, Any], plan: Plan, shard: str) -> dict[str, Any]:
    """A row of a quarantined item."""
    known = {"stage": "decode", "error": "corrupt-image", "message": "no", "run_id": plan.run_id, "shard": shard}
    return (
        dict.fromkeys(QUARANTINE_SCHEMA.names)
        | {name: item[name] for name in QUARANTINE_SCHEMA.names if name in item}
        | known
    )


def commit(storage: Storage, plan: Plan, items: pa.Table, shard: str, **options: float) -> CommitRecord:
    """The shard's first item quarantined, the others annotated."""
    first, *others = items_of(plan, items, shard)
    rows = [annotation(row, plan, shard, **options) for row in others]
    return commit_shard(storage, plan, shard, result_of(rows, [quarantine(first, plan, shard)]))


def commit_all_but_first(storage: Storage, **changes: Any) -> tuple[Plan, Rows]:
    """A plan, all shards of it committed but the first one, and the items of that."""
    plan, items = planned(storage, **changes)
    for shard in plan.shards[1:]:
        commit(storage, plan, items, shard)
    return plan, items_of(plan, items, "000000")


def publish_committed(storage: Storage, plan: Plan) -> VersionRecord:
    """Publish what is committed."""
    return publish(storage, plan, read_commits(storage, plan.version, plan.shards))


def finish(storage: Storage, **changes: Any) -> tuple[Plan, pa.Table]:
    """A published annotation of images: its plan and items. It is made once for each kind of storage, then copied."""
    key = (type(storage), repr(changes))
    if key in _FINISHED:
        plan, items, files = _FINISHED[key]
        for path, data in files.items():
            _put(storage, path, data)
        return plan, items
    plan, items = planned(storage, **changes)
    for shard in plan.shards:
        commit(storage, plan, items, shard)
    publish_committed(storage, plan)
    _FINISHED[key] = plan, items, {entry.path: storage.read(entry.path) for entry in storage.list()}
    return plan, items


def _put(storage: Storage, path: str, data: bytes) -> None:
    """Write; straight into the S3 server's memory, which is in this process."""
    if isinstance(storage, S3Storage):
        from moto.s3.models import s3_backends

        s3_backends["123456789012"]["aws"].put_object(storage.bucket, storage.prefix + path, data)
    else:
        storage.write(path, data)


def data_file(storage: Storage, shard: str, status: str = "ok") -> DataFile:
    """The data file of a shard."""
    (found,) = [file for file in read_commit(storage, 0, shard).files if file.status == status]
    return found


def silently_changed(data: bytes, group: int = 0, column: int = 0) -> bytes:
    """A Parquet file with one byte of a column changed, so that it has other values and reads without an error."""
    before = pq.ParquetFile(pa.BufferReader(data)).read_row_group(group)
    chunk = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(group).column(column)
    for offset in range(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size):
        changed = data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
        try:
            after = pq.ParquetFile(pa.BufferReader(changed)).read_row_group(group)
        except (OSError, pa.ArrowException):
            continue
        if not after.equals(before):
            return changed
    raise AssertionError("every change is noticed without checksums")

"""Committing a shard: its files first, named by their digest, then one record that only one writer can put.

A crash before the record leaves files that nobody reads; a second writer of the same shard finds the record there and
lets it stand. So a shard counts once, however often it was run.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
from pydantic import Field, ValidationError

from mmva.errors import CheckFailed
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.schema import WINDOW_EMBEDDING_SCHEMA, sha256_hex, table_to_parquet
from mmva_platform.settings import Config
from mmva_platform.storage import Storage

COMMITS: Final = "commits/"
_READERS: Final = 16  # at once; one after another, a million records would take hours


class FileRecord(Config):
    """One Parquet file of a shard."""

    path: str
    rows: int = Field(ge=1)
    size: int
    sha256: str


@dataclass(frozen=True)
class ShardResult:
    """What a worker made of a shard's items: every item in exactly one of the two tables.

    Attributes:
        ok: ANNOTATION_SCHEMA.
        quarantined: QUARANTINE_SCHEMA.
        windows: WINDOW_EMBEDDING_SCHEMA; without rows where none are kept.
        work: How many items came about how: "media" (from their bytes), "same bytes" (as another item of the shard),
            "heads" (from stored embeddings), "carried" (as they stood), "quarantined".
        seconds: Of this process by stage: "fetch", "decode", "infer", "heads".
    """

    ok: pa.Table
    quarantined: pa.Table
    windows: pa.Table = field(default_factory=WINDOW_EMBEDDING_SCHEMA.empty_table)
    work: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class CommitRecord(Config):
    """`commits/<shard>.json`: what a shard came to. A file without rows is not written."""

    shard: str
    run_id: str
    items: int
    ok: int
    quarantined: int
    by_modality: dict[str, int] = Field(description="annotated items of each modality")
    causes: dict[str, int] = Field(description="quarantined items of each cause")
    work: dict[str, int] = Field(description="items by how they came about; see ShardResult")
    seconds: dict[str, float] = Field(description="of the worker, by stage; see ShardResult")
    worker: str = Field("", description="host and process that committed it")
    attempt: int = Field(1, ge=1, description="above 1 if earlier tries failed, or their workers died")
    data: FileRecord | None
    quarantine: FileRecord | None
    windows: FileRecord | None


def commit_shard(storage: Storage, plan: Plan, shard: str, result: ShardResult, *, attempt: int = 1) -> CommitRecord:
    """Write a shard's rows and make them count.

    Args:
        storage: The run's output.
        plan: The run's plan.
        shard: Its name.
        result: Its rows.
        attempt: Number of this try.

    Returns:
        The shard's record: this one, or the one another writer put first.
    """
    begun = time.monotonic()
    files = {
        "data": _write(storage, "data", shard, result.ok),
        "quarantine": _write(storage, "quarantine", shard, result.quarantined),
        "windows": _write(storage, "windows", shard, result.windows),
    }
    record = CommitRecord(
        shard=shard,
        run_id=plan.run_id,
        items=result.ok.num_rows + result.quarantined.num_rows,
        ok=result.ok.num_rows,
        quarantined=result.quarantined.num_rows,
        by_modality=_counts(result.ok["modality"]),
        causes=_counts(result.quarantined["error"]),
        work=dict(result.work),
        seconds={**result.seconds, "write": time.monotonic() - begun},
        worker=f"{socket.gethostname()}:{os.getpid()}",
        attempt=attempt,
        **files,
    )
    path = commit_path(shard)
    if storage.put_if_absent(path, record.model_dump_json(indent=1).encode()):
        return record
    return parse_commit(storage, path)


def committed_shards(storage: Storage) -> set[str]:
    """Names of the shards that have a record; reads no record."""
    return {
        entry.path.removeprefix(COMMITS).removesuffix(".json")
        for entry in storage.list(COMMITS)
        if entry.path.endswith(".json")
    }


def read_commit(storage: Storage, shard: str) -> CommitRecord:
    """The record of a committed shard."""
    return parse_commit(storage, commit_path(shard))


def read_commits(storage: Storage, shards: Iterable[str]) -> list[CommitRecord]:
    """Records of committed shards, in the order given; some at a time, because each is a request of its own."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda shard: read_commit(storage, shard), shards))


def parse_commit(storage: Storage, path: str) -> CommitRecord:
    """The record at a path.

    Raises:
        CheckFailed: If it is not a commit record; says which file to look at.
    """
    try:
        return CommitRecord.model_validate_json(storage.read(path))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise CheckFailed(
            f"{storage.join(path)}: not a commit record ({reason}); delete it to run the shard again"
        ) from None


def commit_path(shard: str) -> str:
    """Where a shard's record stands."""
    return f"{COMMITS}{shard}.json"


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    counted = values.value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: entry["values"])}


def _write(storage: Storage, folder: str, shard: str, table: pa.Table) -> FileRecord | None:
    if not table.num_rows:
        return None
    data = table_to_parquet(table)
    digest = sha256_hex(data)
    path = f"{folder}/{shard}-{digest[:16]}.parquet"
    storage.write(path, data)
    return FileRecord(path=path, rows=table.num_rows, size=len(data), sha256=digest)

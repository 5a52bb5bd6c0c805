"""Committing a shard: its files first, named by their digest, then one record that only one writer can put.

A crash before the record leaves files that nobody reads; a second writer of the same shard finds the record there and
lets it stand. So a shard counts once, however often it was run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
from pydantic import Field, ValidationError

from mmva.errors import CheckFailed
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, rows_to_parquet, sha256_hex
from mmva_platform.settings import Config
from mmva_platform.storage import Storage

COMMITS: Final = "commits/"


class FileRecord(Config):
    """One Parquet file of a shard."""

    path: str
    rows: int = Field(ge=1)
    size: int
    sha256: str


class CommitRecord(Config):
    """`commits/<shard>.json`: what a shard came to. A file without rows is not written."""

    shard: str
    run_id: str
    items: int
    ok: int
    quarantined: int
    by_modality: dict[str, int] = Field(description="annotated items of each modality")
    causes: dict[str, int] = Field(description="quarantined items of each cause")
    data: FileRecord | None
    quarantine: FileRecord | None


def commit_shard(
    storage: Storage, run_id: str, shard: str, ok: Sequence[dict[str, Any]], quarantined: Sequence[dict[str, Any]]
) -> CommitRecord:
    """Write a shard's rows and make them count.

    Args:
        storage: The run's output.
        run_id: The plan's.
        shard: Its name.
        ok: Rows of ANNOTATION_SCHEMA.
        quarantined: Rows of QUARANTINE_SCHEMA.

    Returns:
        The shard's record: this one, or the one another writer put first.
    """
    record = CommitRecord(
        shard=shard,
        run_id=run_id,
        items=len(ok) + len(quarantined),
        ok=len(ok),
        quarantined=len(quarantined),
        by_modality=dict(sorted(Counter(row["modality"] for row in ok).items())),
        causes=dict(sorted(Counter(row["error"] for row in quarantined).items())),
        data=_write(storage, "data", shard, ok, ANNOTATION_SCHEMA),
        quarantine=_write(storage, "quarantine", shard, quarantined, QUARANTINE_SCHEMA),
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


def _write(
    storage: Storage, folder: str, shard: str, rows: Sequence[dict[str, Any]], schema: pa.Schema
) -> FileRecord | None:
    if not rows:
        return None
    data = rows_to_parquet(rows, schema)
    digest = sha256_hex(data)
    path = f"{folder}/{shard}-{digest[:16]}.parquet"
    storage.write(path, data)
    return FileRecord(path=path, rows=len(rows), size=len(data), sha256=digest)

"""Commits a shard: first its files, named by their digest, then one record that only one writer can put.

A crash before the record leaves files that no reader sees; a second writer of the same shard finds the record and keeps
it. So a shard counts once, however often it runs.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from mmva.errors import CheckFailed
from mmva.files import sha256_hex
from mmva_platform.annotation import schema
from mmva_platform.annotation.plan.plan import Plan, version_folder
from mmva_platform.annotation.table.delta import TableFile, data_path
from mmva_platform.settings import Config
from mmva_platform.storage import Storage

NumberT = TypeVar("NumberT", int, float)
_READERS: Final = 16  # in parallel, because reading a million records one by one would take hours


class DataFile(Config):
    """A data file of a shard, with rows of one status and modality; named by its digest."""

    path: str
    rows: int = Field(ge=1)
    size: int
    status: str
    modality: str | None

    @property
    def in_table(self) -> TableFile:
        """The file as an entry of the table."""
        return TableFile(self.path, self.rows, self.size, self.status, self.modality)


@dataclass(frozen=True)
class ShardResult:
    """The tables that a worker made from a shard's items. Every item is in exactly one of the first two.

    `work` counts items by how they were annotated: "media" (from their bytes), "same bytes" (as another item of the
    shard), "heads" (from stored embeddings), "carried" (copied), "quarantined". `seconds` has the process's time by
    stage: "fetch", "decode", "infer", "heads".
    """

    ok: pa.Table  # ANNOTATION_SCHEMA; references are null if `embeddings` holds the rows' embeddings
    quarantined: pa.Table  # QUARANTINE_SCHEMA
    # EMBEDDING_FILE_SCHEMA, a row for each of `ok`; empty if those refer to existing files
    embeddings: pa.Table = field(default_factory=schema.EMBEDDING_FILE_SCHEMA.empty_table)
    work: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class CommitRecord(Config):
    """`commits/<shard>.json`: the result of a shard."""

    shard: str
    run_id: str
    items: int
    ok: int
    quarantined: int
    by_modality: dict[str, int] = Field(description="annotated items of each modality")
    causes: dict[str, int] = Field(description="quarantined items of each cause")
    work: dict[str, int] = Field(description="items by how they were annotated; see ShardResult")
    seconds: dict[str, float] = Field(description="of the worker, by stage; see ShardResult")
    worker: str = Field("", description="host and process that committed it")
    attempt: int = Field(1, ge=1, description="above 1 if earlier attempts failed, or their workers died")
    files: tuple[DataFile, ...]
    embeddings: tuple[str, ...] = Field(description="files of embeddings that the shard wrote")


def commit_shard(storage: Storage, plan: Plan, shard: str, result: ShardResult, *, attempt: int = 1) -> CommitRecord:
    """Write a shard's rows and commit them. Returns its record, or the one that another writer put first."""
    begun = time.monotonic()
    files, embeddings = _write_files(storage, plan, shard, result)
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
        files=tuple(files),
        embeddings=tuple(embeddings),
    )
    if storage.put_if_absent(commit_path(plan.version, shard), record.model_dump_json(indent=1).encode()):
        return record
    return read_commit(storage, plan.version, shard)


def committed_shards(storage: Storage, version: int) -> set[str]:
    """Names of the shards of a version that have a record; does not read the records."""
    folder = _commits(version)
    return {
        entry.path.removeprefix(folder).removesuffix(".json")
        for entry in storage.list(folder)
        if entry.path.endswith(".json")
    }


def read_commit(storage: Storage, version: int, shard: str) -> CommitRecord:
    """The record of a committed shard. Raises CheckFailed, with the file's URI, if it is not a commit record."""
    path = commit_path(version, shard)
    try:
        return CommitRecord.model_validate_json(storage.read(path))
    except ValidationError as error:
        raise CheckFailed(
            f"{storage.join(path)}: not a commit record ({error.errors()[0]['msg']}); delete it to run the shard again"
        ) from None


def read_commits(storage: Storage, version: int, shards: Iterable[str]) -> list[CommitRecord]:
    """Records of committed shards, in the given order."""
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda shard: read_commit(storage, version, shard), shards))


def commit_path(version: int, shard: str) -> str:
    """Path of a shard's record."""
    return f"{_commits(version)}{shard}.json"


def _commits(version: int) -> str:
    return f"{version_folder(version)}/commits/"


def summed(parts: Iterable[Mapping[str, NumberT]]) -> dict[str, NumberT]:
    """Sums by name, in the order in which names first occur."""
    found: dict[str, NumberT] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found[name] + value if name in found else value
    return found


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    counted = values.value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: entry["values"])}


def _write_files(storage: Storage, plan: Plan, shard: str, result: ShardResult) -> tuple[list[DataFile], list[str]]:
    """Write a file for each status and modality, and one of embeddings for each modality; embeddings first."""
    files: list[tuple[DataFile, bytes]] = []
    written: list[str] = []
    for modality, rows, at_N in _by_modality(result.ok):
        if result.embeddings.num_rows:
            data = schema.table_to_parquet(result.embeddings.take(at_N).combine_chunks())
            path = f"{plan.folder}/embeddings/{shard}-{sha256_hex(data)}.parquet"
            storage.write(path, data)
            written.append(path)
            rows = _referring(rows, path)  # noqa: PLW2901 - the rows of this file from here on
        files.append(_data_file(plan.version, shard, "ok", modality, rows))
    for modality, rows, _ in _by_modality(result.quarantined):
        files.append(_data_file(plan.version, shard, "quarantined", modality, rows))
    for file, data in files:
        storage.write(file.path, data)
    return [file for file, _ in files], written


def _data_file(version: int, shard: str, status: str, modality: str | None, rows: pa.Table) -> tuple[DataFile, bytes]:
    data = schema.table_to_parquet(rows.drop_columns("modality"))
    path = data_path(version, shard, status, modality, sha256_hex(data))
    return DataFile(path=path, rows=rows.num_rows, size=len(data), status=status, modality=modality), data


def _by_modality(table: pa.Table) -> Iterator[tuple[str | None, pa.Table, pa.Array]]:
    """Yield modality, rows and their positions, in the order of the first item of each modality."""
    for modality in pc.unique(table["modality"]).to_pylist():
        of_it = pc.is_null(table["modality"]) if modality is None else pc.equal(table["modality"], modality)
        at_N = pa.array(np.flatnonzero(np.asarray(of_it.fill_null(False))))  # noqa: FBT003 - Arrow's own signature
        yield modality, table.take(at_N).combine_chunks(), at_N


def _referring(rows: pa.Table, path: str) -> pa.Table:
    count = rows.num_rows
    columns = (pa.repeat(pa.scalar(path, pa.string()), count), pa.array(np.arange(count, dtype=np.int32)))
    for column, values in zip(schema.REFERENCE_SCHEMA, columns, strict=True):
        rows = rows.set_column(schema.ANNOTATION_SCHEMA.get_field_index(column.name), column, values)
    return rows

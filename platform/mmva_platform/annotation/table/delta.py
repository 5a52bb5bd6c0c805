"""The Delta table over an annotation's data files: lists the files of a version, and commits the next version.

The table is at the root of the annotation. `_mmva/` next to it has plans, commit records, embeddings and models.
Delta's own tools (VACUUM) do not touch folders that begin with an underscore.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, takewhile
from typing import Any, Final, NamedTuple

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Schema
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from mmva.errors import CheckFailed, UsageError
from mmva.modalities import MEDIA_KINDS
from mmva_platform.annotation.schema import PARTITIONS, TABLE_SCHEMA
from mmva_platform.storage import Storage, StorageError, StorageUnavailable

LOG: Final = "_delta_log/"
_RUN: Final = "mmvaRunId"  # key in the information of a Delta commit
_DECORATION: Final = re.compile(r"\x1b\[[0-9]*m|↳")  # in messages of deltalake


class TableFile(NamedTuple):
    """A data file of the table; `path` is relative to the annotation."""

    path: str
    rows: int  # one per item
    size: int  # in bytes
    status: str  # "ok" or "quarantined"
    modality: str | None  # of all its items; None if unknown, in quarantine only


def digest_in(path: str) -> str:
    """The digest in the name of a file such as "a/000000-000012-<digest>.parquet"."""
    return path.rpartition("-")[2].partition(".")[0]


def data_path(version: int, shard: str, status: str, modality: str | None, digest: str) -> str:
    """Path of a data file, with Hive's names of folders. An unknown modality is not used, as it may be any text."""
    folder = modality if modality in MEDIA_KINDS else "__HIVE_DEFAULT_PARTITION__"
    return f"status={status}/modality={folder}/{version:06d}-{shard}-{digest}.parquet"


def latest_version(storage: Storage) -> int | None:
    """The newest published version; None before the first."""
    return max(_versions(storage), default=None)


def latest_own_version(storage: Storage) -> int | None:
    """The newest version that mmva made; None if there is none."""
    return next((version for version in reversed(_versions(storage)) if run_of(storage, version) is not None), None)


def is_published(storage: Storage, version: int) -> bool:
    """Whether the table has this version."""
    return storage.exists(f"{LOG}{version:020d}.json")


def open_table(storage: Storage, version: int | None = None) -> DeltaTable:
    """The table at a version, the newest by default.

    Raises UsageError if nothing is published or there is no such version, CheckFailed if another program wrote the
    version or its log is damaged, StorageUnavailable if storage does not answer.
    """
    versions = _versions(storage)
    if not versions:
        verb = "convert` reads the earlier format" if storage.exists("MANIFEST.json") else "resume` finishes a run"
        raise UsageError(f"{storage.uri}: no published annotations; `mmva annotations {verb}")
    wanted = max(versions) if version is None else version
    if wanted not in versions:
        raise UsageError(f"{storage.uri}: there is no version {wanted}; versions are 0 to {max(versions)}")
    if run_of(storage, wanted) is None:
        raise CheckFailed(
            f"{storage.uri}: another program wrote version {wanted} of the table; `mmva annotations restore` undoes "
            "that, and --version reads an earlier version"
        )
    try:
        return DeltaTable(storage.uri, version=wanted, storage_options=storage.object_store_options())
    except Exception as error:
        raise _failure(storage, error) from error


def files_of(table: DeltaTable) -> list[TableFile]:
    """The data files of a version, by path."""
    columns = ("path", "num_records", "size_bytes", "partition.status", "partition.modality")
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    return sorted(TableFile(*(action[name] for name in columns)) for action in actions)


def run_of(storage: Storage, version: int) -> str | None:
    """The run that made a version; None if another program did."""
    lines = storage.read(f"{LOG}{version:020d}.json").splitlines()
    for line in {*lines[:1], *lines[-1:]}:  # one of the two is the commit's information
        with suppress(ValueError, KeyError, TypeError):
            run: str = json.loads(line)["commitInfo"][_RUN]
            return run
    return None


@dataclass(frozen=True)
class TableChange:
    """What a version of the table adds to and removes from the one before."""

    version: int
    run_id: str
    added: Sequence[TableFile]
    removed: Iterable[TableFile]  # files of the version before that this one does not have
    created_at: datetime
    notes: Mapping[str, str]  # for people who read the table's history
    restores: int | None = None  # the version whose files and columns this one has again, instead of added and removed


def commit_version(storage: Storage, change: TableChange) -> None:
    """Add a version to the table, unless the same run has already done so.

    The change depends only on the run's plan and commit records, so any process may commit it, any number of times.
    Raises CheckFailed if another run or program has committed this version, StorageError if it cannot be written.
    """
    version = change.version
    if not is_published(storage, version):
        try:
            _commit(storage, change)
        except Exception as error:
            if not is_published(storage, version):
                raise _failure(storage, error) from error
    if run_of(storage, version) != change.run_id:
        raise CheckFailed(f"{storage.uri}: another run or program committed version {version}; it stays unchanged")


def _commit(storage: Storage, change: TableChange) -> None:
    options = storage.object_store_options()
    common: dict[str, Any] = {
        "schema": Schema.from_arrow(TABLE_SCHEMA),
        "partition_by": list(PARTITIONS),
        # No retries: otherwise a commit that lost the race would become the next version.
        "commit_properties": CommitProperties({_RUN: change.run_id, **change.notes}, max_commit_retries=0),
        # Old versions stay readable until `clean`.
        "post_commithook_properties": PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False),
    }
    at_ms = int(change.created_at.timestamp() * 1000)
    adds = [
        AddAction(file.path, file.size, _partition(file), at_ms, True, json.dumps({"numRecords": file.rows}))  # noqa: FBT003
        for file in change.added
    ]
    if change.version == 0:
        create_table_with_add_actions(
            storage.uri, add_actions=adds, mode="error", name="annotations", storage_options=options, **common
        )
        return
    table = DeltaTable(storage.uri, version=change.version - 1, storage_options=options)
    if change.restores is not None:
        hooks = {name: common[name] for name in ("commit_properties", "post_commithook_properties")}
        table.restore(change.restores, **hooks)
        return
    removes = [RemoveAction(file.path, True, at_ms, file.size, _partition(file)) for file in change.removed]  # noqa: FBT003
    table.create_write_transaction([*adds, *removes], mode="append", **common)


def _partition(file: TableFile) -> dict[str, str | None]:
    return dict(zip(PARTITIONS, (file.status, file.modality), strict=True))


def _failure(storage: Storage, error: Exception) -> StorageError | CheckFailed:
    """Convert an error of deltalake to ours. Its first lines name the failed request; a backtrace may follow."""
    lines = (_DECORATION.sub("", line).strip() for line in str(error).splitlines())
    reason = ": ".join(islice(takewhile(lambda line: not line.startswith("0: "), lines), 3)) or type(error).__name__
    kind = StorageUnavailable if isinstance(error, OSError) else CheckFailed
    return kind(f"{storage.join(LOG.rstrip('/'))}: {reason}")


def _versions(storage: Storage) -> list[int]:
    names = (entry.path.removeprefix(LOG) for entry in storage.list(LOG))
    return sorted(int(name[:20]) for name in names if name[20:] == ".json" and name[:20].isdigit())

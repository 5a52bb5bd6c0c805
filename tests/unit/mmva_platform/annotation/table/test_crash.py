"""What a crash or an outage leaves behind: a record whose files are there, or none; a published version, or none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mmva.errors import UsageError
from mmva.files import sha256_hex
from mmva_platform.annotation.plan.plan import Plan
from mmva_platform.annotation.table import delta as table
from mmva_platform.annotation.table.commit import ShardResult, commit_shard, committed_shards, read_commit
from mmva_platform.annotation.table.delta import digest_in, latest_version
from mmva_platform.annotation.table.publish import read_record
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.storage import StorageUnavailable
from mmva_platform.storage.local import LocalStorage

from ....helpers.committed import annotation, planned, publish_committed, quarantine, result_of


class Crash(BaseException):
    """The process is gone."""


class CrashingStorage(LocalStorage):
    """Crashes before or after its nth put, counted from 1."""

    def __init__(self, root: Path, nth: int, *, after: bool) -> None:
        super().__init__(root)
        self._left, self._after = nth, after

    def write(self, path: str, data: bytes) -> None:
        self._step(lambda: super(CrashingStorage, self).write(path, data))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        return bool(self._step(lambda: super(CrashingStorage, self).put_if_absent(path, data)))

    def _step(self, put: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Crash
        done = put()
        if self._left == 0:
            raise Crash
        return done


def one_shard(folder: Path) -> tuple[Plan, ShardResult]:
    """A plan of two items in one shard; the first annotated, the second not."""
    plan, items = planned(LocalStorage(folder), count=2)
    first, second = items.to_pylist()
    return plan, result_of([annotation(first, plan, "000000")], [quarantine(second, plan, "000000")])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_record_is_never_there_before_its_files(tmp_path: Path, nth: int, after: bool) -> None:
    plan, result = one_shard(tmp_path)
    with pytest.raises(Crash):
        commit_shard(CrashingStorage(tmp_path, nth, after=after), plan, "000000", result)
    storage = LocalStorage(tmp_path)
    assert committed_shards(storage, 0) == ({"000000"} if (nth, after) == (4, True) else set())
    for entry in storage.list("status=ok/"):  # embeddings are there before what refers to them
        (name,) = pq.read_table(io.BytesIO(storage.read(entry.path)))["embedding_file"].to_pylist()
        assert storage.exists(name)
    commit_shard(storage, plan, "000000", result)
    record = read_commit(storage, 0, "000000")
    assert sorted(file.status for file in record.files) == ["ok", "quarantined"]
    for path in [*(file.path for file in record.files), *record.embeddings]:
        assert sha256_hex(storage.read(path)) == digest_in(path)
    assert len(list(storage.list("status="))) == 2  # the second try wrote the same files


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_while_publishing_leaves_nothing_readable_and_publishing_again_finishes_it(
    tmp_path: Path, after: bool
) -> None:
    plan, result = one_shard(tmp_path)
    storage = LocalStorage(tmp_path)
    commit_shard(storage, plan, "000000", result)
    with pytest.raises(Crash):
        publish_committed(CrashingStorage(tmp_path, 1, after=after), plan)
    assert latest_version(storage) is None
    with pytest.raises(UsageError, match="version 0 is not published"):
        read_record(storage, 0)
    record = publish_committed(storage, plan)
    assert (record.version, record.items, record.run_id) == (0, 2, plan.run_id)
    assert latest_version(storage) == 0
    assert open_annotation(storage).table()["id"].to_pylist() == ["i00"]


@pytest.mark.parametrize("lost_answer", [False, True])
def test_a_table_commit_that_fails_is_finished_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_answer: bool
) -> None:
    plan, result = one_shard(tmp_path)
    storage = LocalStorage(tmp_path)
    commit_shard(storage, plan, "000000", result)
    commit = table._commit

    def failing(*arguments: Any) -> None:
        if lost_answer:
            commit(*arguments)
        raise OSError("connection reset by peer")

    monkeypatch.setattr(table, "_commit", failing)
    if lost_answer:  # it is there: the version is published
        publish_committed(storage, plan)
    else:
        with pytest.raises(StorageUnavailable, match="_delta_log: connection reset by peer"):
            publish_committed(storage, plan)
        assert latest_version(storage) is None
    monkeypatch.undo()
    assert publish_committed(storage, plan).items == 2
    assert latest_version(storage) == 0

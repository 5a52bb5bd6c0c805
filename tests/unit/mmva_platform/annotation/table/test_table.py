"""The Delta table of an annotation, on a folder and on S3: one commit a version, other programs beside us."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.options import RetryOptions
from mmva_platform.annotation.plan.plan import Plan
from mmva_platform.annotation.run.update import _plan_retry
from mmva_platform.annotation.schema import TABLE_SCHEMA
from mmva_platform.annotation.table import delta as table
from mmva_platform.annotation.table.clean import clean
from mmva_platform.annotation.table.commit import commit_shard
from mmva_platform.annotation.table.delta import LOG, TableChange, TableFile, commit_version, data_path, latest_version
from mmva_platform.annotation.table.publish import VersionRecord
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.annotation.table.restore import restore
from mmva_platform.annotation.table.status import history, status
from mmva_platform.annotation.table.verify import verify
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, StorageUnavailable

from ....helpers.committed import annotation, finish, items_of, publish_committed, result_of
from ....helpers.planned import iter_items

NAMES = {f"i{number:02d}" for number in range(40)}
NOW = datetime.now(UTC)


def retried(storage: Storage) -> Plan:
    """A published version, and the next one but for its publication: what was quarantined is annotated."""
    finish(storage)
    plan = _plan_retry(open_annotation(storage), RetryOptions())
    assert plan is not None
    items = pa.concat_tables(iter_items(storage, plan))
    for shard in plan.shards:
        rows = [annotation(row, plan, shard) for row in items_of(plan, items, shard)]
        commit_shard(storage, plan, shard, result_of(rows, []))
    return plan


def delta(storage: Storage, version: int | None = None) -> DeltaTable:
    return DeltaTable(storage.uri, version=version, storage_options=storage.object_store_options())


def log_of(storage: Storage) -> list[str]:
    return sorted(entry.path.removeprefix(LOG) for entry in storage.list(LOG))


def publish_at_once(storage: Storage, plan: Plan) -> None:
    def call(_number: int) -> VersionRecord:
        return publish_committed(storage, plan)

    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(call, range(4)))
    assert {record.run_id for record in records} == {plan.run_id}


def test_of_four_drivers_that_publish_a_run_at_once_one_makes_the_version(storage: Storage) -> None:
    plan, _ = finish(storage)
    storage.delete(f"{LOG}{0:020d}.json")
    publish_at_once(storage, plan)
    assert log_of(storage) == [f"{0:020d}.json"]
    assert (open_annotation(storage).count(), open_annotation(storage).count("quarantined")) == (35, 5)


def test_of_four_drivers_that_publish_an_update_at_once_one_makes_the_version(storage: Storage) -> None:
    plan = retried(storage)
    publish_at_once(storage, plan)
    assert log_of(storage) == [f"{number:020d}.json" for number in (0, 1)]
    assert (latest_version(storage), delta(storage).version()) == (1, 1)
    assert set(open_annotation(storage).table(["id"])["id"].to_pylist()) == NAMES
    assert (open_annotation(storage, version=0).count(), open_annotation(storage).count()) == (35, 40)


def test_a_commit_that_lost_the_race_does_not_become_the_version_after(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(storage)
    added = TableFile(data_path(1, "000000", "ok", "image", "0" * 64), 3, 9, "ok", "image")
    change = TableChange(1, "run", [added], [], NOW, {})
    commit_version(storage, change)
    looks = iter([False])  # another driver looked before that, and commits now
    monkeypatch.setattr(table, "is_published", lambda *_place: next(looks, True))
    commit_version(storage, change)
    assert log_of(storage) == [f"{number:020d}.json" for number in (0, 1)]
    assert open_annotation(storage).count() == 38


def test_polars_and_deltalake_count_every_item_once(storage: Storage, settings: Settings) -> None:
    publish_committed(storage, retried(storage))
    for version, ok in ((0, 35), (1, 40)):
        dataset = delta(storage, version).to_pyarrow_dataset()
        frame = pl.scan_delta(storage.uri, version=version, storage_options=storage.object_store_options())
        by_deltalake = dataset.to_table(columns=["id", "status"]).to_pylist()
        for found in (by_deltalake, frame.select("id", "status").collect().to_dicts()):
            assert sorted(row["id"] for row in found) == sorted(NAMES)
            assert sum(row["status"] == "ok" for row in found) == ok
    assert verify(storage.uri, settings).problems == ()


def test_the_table_has_the_columns_of_its_schema_with_the_partitions_values(storage: Storage) -> None:
    finish(storage)
    rows = delta(storage).to_pyarrow_dataset().to_table()
    assert rows.schema.names == TABLE_SCHEMA.names
    assert set(zip(rows["status"].to_pylist(), rows["modality"].to_pylist(), strict=True)) == {
        ("ok", "image"), ("quarantined", "image"),
    }  # fmt: skip


def test_a_version_that_another_run_committed_stays_as_it_is(storage: Storage) -> None:
    finish(storage)
    before = storage.read(f"{LOG}{0:020d}.json")
    with pytest.raises(CheckFailed, match="another run or program committed version 0"):
        commit_version(storage, TableChange(0, "another", [], [], NOW, {}))
    assert storage.read(f"{LOG}{0:020d}.json") == before


def test_a_version_is_not_published_when_another_program_took_its_number(storage: Storage) -> None:
    plan = retried(storage)
    delta(storage).optimize.compact()
    with pytest.raises(CheckFailed, match="another run or program committed version 1"):
        publish_committed(storage, plan)
    assert latest_version(storage) == 1


def test_a_table_that_another_program_wrote_to_is_refused_and_its_earlier_versions_are_read(
    storage: Storage, settings: Settings
) -> None:
    finish(storage)
    delta(storage).optimize.compact()
    row = TABLE_SCHEMA.empty_table().to_pydict() | {name: [None] for name in TABLE_SCHEMA.names}
    rows = pa.table(row | {"id": ["x"], "status": ["ok"], "modality": ["image"]}, TABLE_SCHEMA)
    for version in (1, 2):
        for call in (
            lambda: open_annotation(storage),
            lambda: status(storage.uri, settings),
            lambda: verify(storage.uri, settings),
            lambda: clean(storage.uri, settings),
        ):
            with pytest.raises(CheckFailed, match=f"another program wrote version {version}") as caught:
                call()
            assert len(str(caught.value).splitlines()) == 1
        write_deltalake(storage.uri, rows, mode="append", storage_options=storage.object_store_options())
    assert open_annotation(storage, version=0).count() == 35
    assert verify(storage.uri, settings, version=0).problems == ()
    lines = history(storage.uri, settings).to_text().splitlines()
    assert ["another program" in line for line in lines] == [False, True, True, True]


def write_as_another_program(storage: Storage) -> None:
    """Three versions: a file rewritten without one of its rows, files merged, a column added."""
    delta(storage).delete("id = 'i00'")
    delta(storage).optimize.compact()
    rows = pa.table({"id": ["x"], "status": ["ok"], "modality": ["image"], "theirs": [1]})
    options = storage.object_store_options()
    write_deltalake(storage.uri, rows, mode="append", schema_mode="merge", storage_options=options)


_RESTORE = """
import sys
from mmva_platform.annotation.table.restore import restore
from mmva_platform.settings import Settings

print(restore(sys.argv[1], Settings.model_validate_json(sys.argv[2])).version)
"""


def restored_elsewhere(storage: Storage, settings: Settings) -> int:
    """The version that another process makes: deltalake's restore holds the lock that the S3 server here needs."""
    command = [sys.executable, "-c", _RESTORE, storage.uri, settings.model_dump_json()]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_restore_has_exactly_the_files_of_our_last_version_and_deletes_nothing(
    storage: Storage, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_committed(storage, retried(storage))
    ours = open_annotation(storage).all_files
    assert restore(storage.uri, settings).version == 1, "there is nothing to undo yet"
    write_as_another_program(storage)
    before = {entry.path for entry in storage.walk("")}
    with pytest.raises(CheckFailed, match="another program wrote version 4 of the table; `mmva annotations restore`"):
        verify(storage.uri, settings)
    with monkeypatch.context() as patch:  # the driver dies between the plan and the commit
        patch.setattr("mmva_platform.annotation.table.publish.commit_version", _dies)
        with pytest.raises(KeyboardInterrupt):
            restore(storage.uri, settings)
    for _ in range(2):
        assert restored_elsewhere(storage, settings) == 5
    assert open_annotation(storage).all_files == ours
    frame = pl.scan_delta(storage.uri, storage_options=storage.object_store_options()).collect()
    assert (sorted(frame["id"]), frame.columns) == (sorted(NAMES), TABLE_SCHEMA.names)
    assert (verify(storage.uri, settings).problems, verify(storage.uri, settings, 1).problems) == ((), ())
    assert before <= {entry.path for entry in storage.walk("")}
    assert clean(storage.uri, settings, keep=2).kept == (1, 5)
    assert "restore" in history(storage.uri, settings).to_text().splitlines()[5]


def _dies(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_restore_needs_a_version_of_ours_with_all_its_files(storage: Storage, settings: Settings) -> None:
    finish(storage)
    write_as_another_program(storage)
    lost = open_annotation(storage, version=0).all_files[0].path
    storage.delete(lost)
    with pytest.raises(CheckFailed, match=f"1 data files of version 0 are missing, such as {lost}"):
        restore(storage.uri, settings)
    storage.write(f"{LOG}{0:020d}.json", b"{}")
    with pytest.raises(CheckFailed, match="another program wrote version 3"):
        restore(storage.uri, settings)


def test_vacuum_of_deltalake_touches_nothing_that_a_version_needs(storage: Storage, settings: Settings) -> None:
    publish_committed(storage, retried(storage))
    replaced = {file.path for file in open_annotation(storage, version=0).files("quarantined")}
    listed = delta(storage).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=True, full=True)
    assert set(listed) == replaced
    delta(storage).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
    assert not any(map(storage.exists, replaced))


def test_a_version_that_does_not_exist_is_named(storage: Storage) -> None:
    with pytest.raises(UsageError, match="no published annotations"):
        open_annotation(storage)
    finish(storage)
    with pytest.raises(UsageError, match="no version 7; versions are 0 to 0"):
        open_annotation(storage, version=7)


@pytest.mark.parametrize("line", [b"{}", b"not JSON", b"[1]", b""])
def test_a_version_without_information_of_ours_is_another_programs(storage: Storage, line: bytes) -> None:
    finish(storage)
    storage.write(f"{LOG}{0:020d}.json", line)
    with pytest.raises(CheckFailed, match="another program wrote version 0"):
        open_annotation(storage)


@pytest.mark.parametrize("line", [b"not JSON", b'{"add":1}'])
def test_a_damaged_log_is_an_error_of_one_line(storage: Storage, line: bytes) -> None:
    finish(storage)
    first, *others = storage.read(f"{LOG}{0:020d}.json").splitlines()
    storage.write(f"{LOG}{0:020d}.json", b"\n".join([first, line, *others]))
    with pytest.raises(CheckFailed, match=r"_delta_log: .*[Jj]son") as caught:
        open_annotation(storage)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("settings", ["s3"], indirect=True)
def test_a_server_that_is_gone_when_deltalake_asks_is_an_error_of_one_line(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(storage)
    options = storage.object_store_options() | {"aws_endpoint": "http://127.0.0.1:9", "max_retries": "0"}
    monkeypatch.setattr(storage, "object_store_options", lambda: options)
    with pytest.raises(StorageUnavailable, match=r"_delta_log: .*GET http://127.0.0.1:9/") as caught:
        open_annotation(storage)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("modality", ["a/../b", None, "%20 é", "x" * 300, ".."])
def test_any_text_may_be_a_modality_of_quarantined_rows(storage: Storage, modality: str | None) -> None:
    path = data_path(0, "000000", "quarantined", modality, "0" * 64)
    file = TableFile(path, 3, 9, "quarantined", modality)
    storage.write(path, b"123456789")
    commit_version(storage, TableChange(0, "run", [file], [], NOW, {}))
    assert open_annotation(storage).all_files == (file,)

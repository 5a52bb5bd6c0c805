"""The protocol of an annotation on a folder and on S3: plan, commit, publish, status."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmva.errors import CheckFailed, MediaError, UsageError
from mmva_platform.annotation.catalog.catalog import open_catalog
from mmva_platform.annotation.media import Fetcher
from mmva_platform.annotation.plan.plan import Base, ItemReader, read_plan
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.annotation.table.commit import commit_path, commit_shard, committed_shards, read_commit, read_commits
from mmva_platform.annotation.table.delta import latest_version
from mmva_platform.annotation.table.publish import publish, read_record
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.annotation.table.status import HeartbeatFile, status
from mmva_platform.annotation.table.verify import verify
from mmva_platform.bulk import InFlight
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import Storage, StorageNotFound

from ....helpers.committed import (
    MODEL,
    PREPROCESSING,
    annotation,
    commit,
    commit_all_but_first,
    embedding,
    finish,
    planned,
    publish_committed,
    quarantine,
    result_of,
    silently_changed,
)
from ....helpers.planned import iter_items, plan_of, read_all, table_of

folder_only = pytest.mark.parametrize("settings", ["folder"], indirect=True)


# --- plan


def test_long_work_comes_first_and_modalities_stay_together(storage: Storage, tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for name in ("a.png", "b.wav", "c.txt", "d.png", "e.mp3"):
        (media / name).write_bytes(b"1")
    plan = plan_of(storage, open_catalog(str(media), StorageSettings()), MODEL, PREPROCESSING, 8)
    items = pa.concat_tables(iter_items(storage, plan))
    assert items.column("id").to_pylist() == ["b.wav", "e.mp3", "a.png", "d.png", "c.txt"]


@folder_only
def test_more_shards_than_names_sort_are_refused(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmva_platform.annotation.plan.planning.MOST_SHARDS", 4)
    with pytest.raises(UsageError, match=r"/m: more than 4 shards; choose a larger --shard-items"):
        planned(storage, shard_items=8)


def test_a_shard_is_a_row_group_of_its_own(storage: Storage) -> None:
    plan, items = planned(storage, count=1_300, shard_items=10)
    assert [(part.first_shard, len(part.rows)) for part in plan.parts] == [(0, 64), (64, 64), (128, 2)]
    assert plan.rows == [10] * 130
    for part in plan.parts:
        file = pq.ParquetFile(pa.BufferReader(storage.read(part.path)))
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        assert rows == list(part.rows)
    read = ItemReader(storage, plan)
    for shard in ("000129", "000000", "000064", "000063"):
        assert read(shard).equals(items.slice(10 * int(shard), 10).combine_chunks())


@folder_only
def test_a_part_is_closed_early_when_it_is_large(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmva_platform.annotation.plan.planning._PART_BYTES", 1_000)
    plan, items = planned(storage, count=150, shard_items=1)
    assert 1 < max(len(part.rows) for part in plan.parts) < 64
    assert items["id"].to_pylist() == [f"i{n:02d}" for n in range(150)]


@folder_only
def test_a_changed_byte_of_a_shards_items_is_noticed_by_its_reader(storage: Storage) -> None:
    plan, _ = planned(storage)
    (part,) = plan.parts
    storage.write(part.path, silently_changed(storage.read(part.path), 2))
    with pytest.raises(CheckFailed, match=r"plan/items-000000-.*changed since it was planned"):
        ItemReader(storage, plan)("000002")
    assert ItemReader(storage, plan)("000001").num_rows == 8


def test_records_are_read_in_the_order_asked_for_and_a_damaged_one_is_named(storage: Storage) -> None:
    plan, items = planned(storage)
    for shard in plan.shards:
        commit(storage, plan, items, shard)
    wanted = plan.shards[::-1]
    assert [record.shard for record in read_commits(storage, 0, wanted)] == wanted
    storage.write(commit_path(0, plan.shards[1]), b"{}")
    with pytest.raises(CheckFailed, match=commit_path(0, plan.shards[1])):
        read_commits(storage, 0, wanted)


def test_the_first_plan_is_the_runs_plan(storage: Storage) -> None:
    first, items = planned(storage)
    again, items_again = planned(storage, shard_items=4)  # sizes of shards do not change what comes out
    assert again == first == read_plan(storage)
    assert items_again.equals(items)


@folder_only
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": MODEL.model_copy(update={"digest": "e" * 64})}, "model digest: dddd"),
        ({"preprocessing": PREPROCESSING.model_copy(update={"hop_s": 3.0})}, "hop_s: 1.5 there, 3.0 now"),
        ({"preprocessing": PREPROCESSING.model_copy(update={"fingerprints": {"image": "0"}})}, "image preprocessing"),
        ({"roots": ("/m", "/n")}, "roots: /m there, /m, /n now"),
        ({"keep_windows": False}, "window embeddings kept: True there, False now"),
    ],
)
def test_another_plan_is_refused_with_the_difference(storage: Storage, changes: dict[str, Any], named: str) -> None:
    first, _ = planned(storage)
    with pytest.raises(CheckFailed, match=named):
        planned(storage, **changes)
    assert read_plan(storage) == first


@folder_only
def test_same_model_under_another_name_is_the_same_run(storage: Storage) -> None:
    first, _ = planned(storage)
    again, _ = planned(storage, model=MODEL.model_copy(update={"name": "folder", "version": None}))
    assert again.model == first.model


def test_a_catalog_that_grew_shares_the_plan_that_was_first(storage: Storage) -> None:
    first, items = planned(storage)
    again, items_again = planned(storage, count=41)
    assert again == first
    assert items_again.equals(items)


def test_catalogs_in_storage_are_read_and_their_media_fetched(storage: Storage, settings: Settings) -> None:
    storage.write("media/b.png", b"png")
    storage.write("media/deep/a.txt", b"text")
    storage.write("list.csv", b"uri\nmedia/b.png\n./media/deep/a.txt\nmedia/gone.png\n")
    folder = read_all(storage.join("media"), settings.storage).to_pylist()
    assert [(row["id"], row["bytes"]) for row in folder] == [("b.png", 3), ("deep/a.txt", 4)]
    table = read_all(storage.join("list.csv"), settings.storage).to_pylist()
    assert [row["uri"] for row in table[:2]] == [row["uri"] for row in folder]
    fetch = Fetcher(settings.storage)
    assert [fetch(row["uri"], row["bytes"], 100) for row in folder + table[:2]] == [b"png", b"text"] * 2
    with pytest.raises(StorageNotFound):
        fetch(table[2]["uri"], None, 100)


@pytest.mark.parametrize("settings", ["s3"], indirect=True)
def test_a_row_does_not_lead_out_of_its_s3_prefix(storage: Storage, settings: Settings) -> None:
    storage.write("list.csv", b"uri\n../../other-bucket/a.png\n")
    (row,) = read_all(storage.join("list.csv"), settings.storage).to_pylist()
    with pytest.raises(MediaError) as caught:
        Fetcher(settings.storage, [storage.uri])(row["uri"], None, 100)
    assert caught.value.code == "outside-roots"


# --- commit and publish


def test_a_published_version_is_read_completely_in_the_plans_order(storage: Storage, settings: Settings) -> None:
    plan, items = finish(storage)
    annotations = open_annotation(storage.uri, settings.storage)
    ok, bad = annotations.table(), annotations.table(status="quarantined")
    assert ok.schema.equals(ANNOTATION_SCHEMA)
    assert bad.schema.equals(QUARANTINE_SCHEMA)
    assert len(plan.shards) == 5
    assert (ok.num_rows, bad.num_rows) == (35, 5) == (annotations.count("ok"), annotations.count("quarantined"))
    assert sorted(ok["id"].to_pylist() + bad["id"].to_pylist()) == items["id"].to_pylist()
    assert ok["id"].to_pylist() == sorted(ok["id"].to_pylist())
    assert set(ok["item_digest"].to_pylist()) < set(items["item_digest"].to_pylist())
    stored = annotations.table(["embedding", "id"])
    expected = [embedding(row)["embedding"] for row in ok["id"].to_pylist()]
    assert (stored.column_names, stored["id"].to_pylist()) == (["embedding", "id"], ok["id"].to_pylist())
    assert stored["embedding"].to_pylist() == expected
    report = verify(storage.uri, settings)
    assert (report.problems, report.notes, report.version) == ((), (), 0)
    assert (report.items, report.annotated, report.quarantined) == (40, 35, 5)


def test_nothing_is_readable_before_it_is_published(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage)
    for shard in plan.shards:
        commit(storage, plan, items, shard)
    assert latest_version(storage) is None
    with pytest.raises(UsageError, match="no published annotations; `mmva annotations resume` finishes a run"):
        open_annotation(storage.uri, settings.storage)
    with pytest.raises(UsageError, match="version 0 is not published"):
        read_record(storage, 0)


def test_publishing_again_changes_nothing(storage: Storage, settings: Settings) -> None:
    plan, _ = finish(storage)
    before, record = sorted(storage.list()), read_record(storage, 0)
    assert publish_committed(storage, plan) == record
    assert sorted(storage.list()) == before
    assert (record.run_id, record.plan_fingerprint, record.items) == (plan.run_id, plan.fingerprint, 40)


def test_a_second_writer_of_a_shard_changes_nothing(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage)
    before = commit(storage, plan, items, "000000")
    assert commit(storage, plan, items, "000000", valence=0.9) == before  # a writer whose numbers differ
    assert read_commit(storage, 0, "000000") == before
    for shard in plan.shards[1:]:
        commit(storage, plan, items, shard)
    publish_committed(storage, plan)
    assert set(open_annotation(storage).table()["valence"].to_pylist()) == {0.5}
    report = verify(storage.uri, settings)
    assert report.ok
    assert report.notes == ("1 files of attempts that did not count; harmless, `mmva annotations clean` removes them",)


def test_equal_rows_give_equal_bytes(storage: Storage) -> None:
    plan, items = planned(storage)
    commit(storage, plan, items, "000000")
    before = sorted(storage.list())
    storage.delete(commit_path(0, "000000"))  # so that the second writer's record is the one
    commit(storage, plan, items, "000000")
    assert [entry.path for entry in sorted(storage.list())] == [entry.path for entry in before]
    names = {entry.path.partition("/")[0] for entry in before}
    assert names == {"_mmva", "status=ok", "status=quarantined"}
    assert len(list(storage.list("status="))) == 2
    assert len(list(storage.list(f"{plan.folder}/embeddings/"))) == 1


def test_a_shards_files_hold_one_modality_each_and_refer_to_embeddings_of_it(storage: Storage) -> None:
    kinds = {"i0": "image", "i1": "music", "i2": "image", "i3": None}
    rows = [{"id": name, "uri": f"/m/{name}", "modality": kind, "bytes": 9} for name, kind in kinds.items()]
    plan = plan_of(storage, table_of(rows), MODEL, PREPROCESSING, 16)
    items = pa.concat_tables(iter_items(storage, plan)).sort_by("id").to_pylist()
    ok = [annotation(item, plan, "000000") | {"modality": item["modality"]} for item in items[:3]]
    bad = [quarantine(items[3], plan, "000000")]
    record = commit_shard(storage, plan, "000000", result_of(ok, bad))
    assert [(file.status, file.modality, file.rows) for file in record.files] == [
        ("ok", "image", 2),
        ("ok", "music", 1),
        ("quarantined", None, 1),
    ]
    assert len(record.embeddings) == 2
    publish_committed(storage, plan)
    annotations = open_annotation(storage)
    found = annotations.table(["id", "modality", "embedding", "embedding_row"]).to_pylist()
    assert [(row["id"], row["modality"], row["embedding_row"]) for row in found] == [
        ("i0", "image", 0),
        ("i2", "image", 1),
        ("i1", "music", 0),
    ]
    assert [row["embedding"] for row in found] == [embedding(row["id"])["embedding"] for row in found]
    assert annotations.table(["id", "modality"], "quarantined").to_pylist() == [{"id": "i3", "modality": None}]


def test_a_shard_without_annotations_writes_no_file_of_them(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage, count=1)
    record = commit(storage, plan, items, "000000")
    assert (record.ok, record.quarantined, record.embeddings) == (0, 1, ())
    assert [file.status for file in record.files] == ["quarantined"]
    publish_committed(storage, plan)
    empty = open_annotation(storage).table()
    assert (empty.num_rows, empty.schema) == (0, ANNOTATION_SCHEMA)
    assert verify(storage.uri, settings).ok


def test_an_unfinished_run_is_not_published(storage: Storage) -> None:
    plan, items = planned(storage)
    record = commit(storage, plan, items, "000000")
    with pytest.raises(CheckFailed, match="not the plan's"):
        publish(storage, plan, [record])
    assert latest_version(storage) is None


@folder_only
def test_shards_of_another_run_are_not_published(storage: Storage) -> None:
    plan, items = planned(storage)
    records = [commit(storage, plan, items, shard) for shard in plan.shards]
    records[2] = records[2].model_copy(update={"run_id": "another"})
    with pytest.raises(CheckFailed, match="not the plan's"):
        publish(storage, plan, records)
    assert latest_version(storage) is None


@folder_only
def test_counts_that_do_not_balance_are_not_published(storage: Storage) -> None:
    plan, (_, *others) = commit_all_but_first(storage)
    commit_shard(storage, plan, "000000", result_of([annotation(row, plan, "000000") for row in others], []))
    with pytest.raises(
        CheckFailed,
        match="version 0 should have 40 items, but 0 are kept, 40 planned, 35 annotated and 4 quarantined",
    ):
        publish_committed(storage, plan)
    assert latest_version(storage) is None


# --- status


def test_status_follows_a_run(storage: Storage, settings: Settings) -> None:
    with pytest.raises(UsageError, match="no annotation here"):
        status(storage.uri, settings)
    plan, items = planned(storage)
    commit(storage, plan, items, "000001")
    run = status(storage.uri, settings)
    assert (run.version, run.kind, run.shards_done, run.shards, run.items) == (0, "annotate", 1, 5, 40)
    assert (run.published, run.annotated, run.quarantined) == (False, 0, 0)
    assert (run.totals.items, run.totals.causes) == (8, {"corrupt-image": 1})
    text = run.to_text()
    assert "version 0 (annotate), not published yet" in text
    assert "1 of 5 shards, 8 of 40 items" in text
    assert "readers see 0 annotated items" in text
    assert committed_shards(storage, 0) == {"000001"}
    for shard in plan.shards:
        commit(storage, plan, items, shard)
    publish_committed(storage, plan)
    run = status(storage.uri, settings)
    assert (run.shards_done, run.published, run.annotated, run.quarantined) == (5, True, 35, 5)
    assert "readers see 35 annotated items, 5 in quarantine" in run.to_text()


@folder_only
def test_status_names_the_shards_under_way_until_the_version_is_published(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage)
    HeartbeatFile(storage, 0)([InFlight(shard="000003", node="n" * 20, step="decode", done=2, seconds=41.0)])
    assert "000003 on node nnnnnnnnnnnn: decode, for 41 s" in status(storage.uri, settings).to_text()
    for shard in plan.shards:
        commit(storage, plan, items, shard)
    publish_committed(storage, plan)
    assert status(storage.uri, settings).heartbeats is None


@folder_only
def test_status_is_of_the_version_under_way(storage: Storage, settings: Settings) -> None:
    finish(storage)
    base = Base(replaced=(), same_model=True, kept=40, unchanged=40, new=8, changed=0, removed=0)
    planned(storage, count=8, version=1, kind="update", base=base)
    run = status(storage.uri, settings)
    assert (run.version, run.kind, run.published, run.shards_done, run.items) == (1, "update", False, 0, 8)
    assert (run.annotated, run.quarantined) == (35, 5)  # of version 0
    assert "version 1 (update), not published yet" in run.to_text()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@folder_only
def test_a_ray_dataset_reads_exactly_the_published_files(storage: Storage) -> None:
    plan, items = planned(storage)
    for shard in plan.shards:
        commit(storage, plan, items, shard)
        commit(storage, plan, items, shard, valence=0.9)  # of an attempt that lost
    publish_committed(storage, plan)
    annotations = open_annotation(storage)
    rows = annotations.to_ray(["id", "valence", "embedding"]).take_all()
    assert sorted(row["id"] for row in rows) == sorted(annotations.table()["id"].to_pylist())
    assert {row["valence"] for row in rows} == {0.5}
    assert all(list(row["embedding"]) == embedding(row["id"])["embedding"] for row in rows)
    assert set(rows[0]) == {"id", "valence", "embedding"}

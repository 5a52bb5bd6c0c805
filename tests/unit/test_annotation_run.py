"""The protocol of an annotation run on a folder and on S3: plan, commit, publish, status, verify."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmva.errors import CheckFailed, MediaError, UsageError
from mmva.inference.config import Preprocessing
from mmva_platform.annotation.catalog import open_catalog
from mmva_platform.annotation.commit import (
    ShardResult,
    commit_path,
    commit_shard,
    committed_shards,
    read_commit,
    read_commits,
)
from mmva_platform.annotation.fetcher import Fetcher
from mmva_platform.annotation.plan import ItemReader, ModelInfo, Plan, iter_items, read_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, publish, read_annotations, read_quarantine, to_ray
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, parquet_to_table
from mmva_platform.annotation.status import status
from mmva_platform.annotation.verify import verify
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import Storage, StorageNotFound, open_storage

from .planned import plan_of, read_all, table_of

MODEL = ModelInfo(name="mmva", version="3", digest="d" * 64)
PREPROCESSING = Preprocessing(fingerprints={"image": "f" * 64}, window_s=3.0, hop_s=1.5, short_side=224)
BUCKET_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


folder_only = pytest.mark.parametrize("settings", ["folder"], indirect=True)


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    if request.param == "folder":
        return Settings()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    endpoint = request.getfixturevalue("s3")
    return Settings(storage=StorageSettings(s3_endpoint=endpoint, s3_region="us-east-1"))


@pytest.fixture
def storage(settings: Settings, tmp_path: Path) -> Storage:
    if settings.storage.s3_endpoint is None:
        return open_storage(tmp_path / "out", settings.storage)
    bucket = f"bucket-{next(BUCKET_NUMBERS)}"
    boto3.client("s3", endpoint_url=settings.storage.s3_endpoint, region_name="us-east-1").create_bucket(Bucket=bucket)
    return open_storage(f"s3://{bucket}/va", settings.storage)


def catalog_of(ids: list[str]) -> pa.Table:
    return table_of([{"id": name, "uri": f"/m/{name}.png", "modality": "image", "bytes": 9} for name in ids])


def planned(storage: Storage, count: int = 40, **changes: Any) -> tuple[Plan, pa.Table]:
    values = {"model": MODEL, "preprocessing": PREPROCESSING, "shard_items": 16} | changes
    plan = plan_of(storage, catalog_of([f"i{n:02d}" for n in range(count)]), **values)
    return plan, pa.concat_tables(iter_items(storage, plan))


def items_of(plan: Plan, items: pa.Table, shard: str) -> list[dict[str, Any]]:
    return items.slice(sum(plan.rows[: int(shard)]), plan.rows[int(shard)]).to_pylist()


def result_of(ok: list[dict[str, Any]], bad: list[dict[str, Any]]) -> ShardResult:
    tables = (pa.Table.from_pylist(ok, ANNOTATION_SCHEMA), pa.Table.from_pylist(bad, QUARANTINE_SCHEMA))
    return ShardResult(*tables, work={"media": len(ok), "quarantined": len(bad)})


def annotation(row: dict[str, Any], plan: Plan, shard: str, valence: float = 0.5) -> dict[str, Any]:
    known = {
        "id": row["id"],
        "uri": row["uri"],
        "modality": "image",
        "valence": valence,
        "arousal": 0.5,
        "embedding": [1.0, 2.0],
        "mood": "neutral",
        "sha256": "0" * 64,
        "model_name": plan.model.name,
        "model_version": plan.model.version,
        "model_digest": plan.model.digest,
        "run_id": plan.run_id,
        "shard": shard,
        "annotated_at": plan.created_at,
    }
    return dict.fromkeys(ANNOTATION_SCHEMA.names) | known


def quarantine(row: dict[str, Any], plan: Plan, shard: str) -> dict[str, Any]:
    return {
        "id": row["id"], "uri": row["uri"], "modality": "image", "stage": "decode", "error": "corrupt-image",
        "message": "no", "sha256": None, "attempts": 1, "run_id": plan.run_id, "shard": shard,
    }  # fmt: skip


def commit(storage: Storage, plan: Plan, items: pa.Table, shard: str, **options: float) -> None:
    """The shard's first item quarantined, the others annotated."""
    first, *others = items_of(plan, items, shard)
    rows = [annotation(row, plan, shard, **options) for row in others]
    commit_shard(storage, plan, shard, result_of(rows, [quarantine(first, plan, shard)]))


def finish(storage: Storage, **changes: Any) -> tuple[Plan, pa.Table]:
    plan, items = planned(storage, **changes)
    for shard in plan.shards:
        commit(storage, plan, items, shard)
    publish(storage, plan, [read_commit(storage, shard) for shard in plan.shards])
    return plan, items


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
    monkeypatch.setattr("mmva_platform.annotation.planning.MOST_SHARDS", 4)
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
    monkeypatch.setattr("mmva_platform.annotation.planning._PART_BYTES", 1_000)
    plan, items = planned(storage, count=150, shard_items=1)
    assert 1 < max(len(part.rows) for part in plan.parts) < 64
    assert items["id"].to_pylist() == [f"i{n:02d}" for n in range(150)]


def silently_changed(data: bytes, group: int) -> bytes:
    """A Parquet file with one byte changed, so that a row group has other values and reads without an error."""
    before = pq.ParquetFile(pa.BufferReader(data)).read_row_group(group)
    column = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(group).column(0)
    for offset in range(column.data_page_offset, column.data_page_offset + column.total_compressed_size):
        changed = data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
        try:
            after = pq.ParquetFile(pa.BufferReader(changed)).read_row_group(group)
        except (OSError, pa.ArrowException):
            continue
        if not after.equals(before):
            return changed
    raise AssertionError("every change is noticed without checksums")


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
    assert [record.shard for record in read_commits(storage, wanted)] == wanted
    storage.write(commit_path(plan.shards[1]), b"{}")
    with pytest.raises(CheckFailed, match=commit_path(plan.shards[1])):
        read_commits(storage, wanted)


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


def test_a_published_run_is_read_in_the_plans_order(storage: Storage, settings: Settings) -> None:
    plan, items = finish(storage)
    ok, bad = read_annotations(storage.uri, settings.storage), read_quarantine(storage.uri, settings.storage)
    assert ok.schema.equals(ANNOTATION_SCHEMA)
    assert len(plan.shards) == 5
    assert ok.num_rows == 35
    assert sorted(ok.column("id").to_pylist() + bad.column("id").to_pylist()) == items.column("id").to_pylist()
    assert ok.column("id").to_pylist() == sorted(ok.column("id").to_pylist())
    assert verify(storage.uri, settings).problems == ()


def test_nothing_is_readable_before_the_manifest(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage)
    for shard in plan.shards:
        commit(storage, plan, items, shard)
    with pytest.raises(UsageError, match=r"MANIFEST\.json is missing"):
        read_annotations(storage.uri, settings.storage)


def test_a_second_writer_of_a_shard_changes_nothing(storage: Storage) -> None:
    plan, items = planned(storage)
    commit(storage, plan, items, "000000")
    before = read_commit(storage, "000000")
    commit(storage, plan, items, "000000", valence=0.9)  # a writer whose numbers differ
    assert read_commit(storage, "000000") == before
    assert before.data is not None
    assert parquet_to_table(storage.read(before.data.path)).column("valence")[0].as_py() == 0.5


def test_equal_rows_give_equal_bytes(storage: Storage) -> None:
    plan, items = planned(storage)
    commit(storage, plan, items, "000000")
    commit(storage, plan, items, "000000")
    assert len(list(storage.list("data/"))) == 1


def test_a_shard_without_annotations_writes_no_data_file(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage, count=1)
    commit(storage, plan, items, "000000")
    record = read_commit(storage, "000000")
    assert (record.ok, record.quarantined, record.data) == (0, 1, None)
    publish(storage, plan, [record])
    assert read_annotations(storage.uri, settings.storage).num_rows == 0
    assert verify(storage.uri, settings).ok


@folder_only
def test_an_unfinished_run_is_not_published(storage: Storage) -> None:
    plan, items = planned(storage)
    commit(storage, plan, items, "000000")
    with pytest.raises(CheckFailed, match="not the plan's"):
        publish(storage, plan, [read_commit(storage, "000000")])
    assert not storage.exists(MANIFEST_FILE)


@folder_only
def test_counts_that_do_not_balance_are_not_published(storage: Storage) -> None:
    plan, items = planned(storage)
    for shard in plan.shards[1:]:
        commit(storage, plan, items, shard)
    lost = [annotation(row, plan, "000000") for row in items_of(plan, items, "000000")[1:]]
    commit_shard(storage, plan, "000000", result_of(lost, []))
    with pytest.raises(CheckFailed, match="40 items planned, but 35 annotated and 4 quarantined"):
        publish(storage, plan, [read_commit(storage, shard) for shard in plan.shards])


# --- status and verify


def test_status_follows_a_run(storage: Storage, settings: Settings) -> None:
    with pytest.raises(UsageError, match="no annotation run here"):
        status(storage.uri, settings)
    plan, items = planned(storage)
    commit(storage, plan, items, "000001")
    found = status(storage.uri, settings)
    (run,) = found.generations
    assert (run.shards_done, run.shards, run.items, run.published) == (1, 5, 40, False)
    assert run.totals.causes == {"corrupt-image": 1}
    assert "1 of 5 shards, 8 of 40 items" in found.to_text()
    assert committed_shards(storage) == {"000001"}


def damage_data(storage: Storage, plan: Plan) -> None:
    record = read_commit(storage, plan.shards[1]).data
    assert record is not None
    storage.write(record.path, storage.read(record.path)[:-1] + b"x")


def swap_quarantine(storage: Storage, plan: Plan) -> None:
    record = read_commit(storage, plan.shards[1]).quarantine
    assert record is not None
    other = read_commit(storage, plan.shards[0]).quarantine
    assert other is not None
    storage.write(record.path, storage.read(other.path))


def damage_commit(storage: Storage, plan: Plan) -> None:
    storage.write(commit_path(plan.shards[1]), b"{}")


def damage_items(storage: Storage, plan: Plan) -> None:
    storage.write(plan.parts[0].path, b"")


def swap_items(storage: Storage, plan: Plan) -> None:
    """Another table of the same shape in place of the planned items."""
    (part,) = plan.parts
    sink, items = pa.BufferOutputStream(), pq.read_table(pa.BufferReader(storage.read(part.path)))
    uris = pa.array([f"/m/{number}.png" for number in range(items.num_rows)], pa.large_string())
    pq.write_table(items.set_column(1, items.schema.field("uri"), uris), sink, row_group_size=8)
    storage.write(part.path, bytes(sink.getvalue()))


def another_plan(storage: Storage, plan: Plan) -> None:
    storage.write("plan.json", plan.model_copy(update={"run_id": "another"}).model_dump_json().encode())


@folder_only
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_data, "data/000001-.*changed since it was written"),
        (swap_quarantine, "quarantine/000001-.*changed since it was written"),
        (damage_commit, r"commits/000001\.json: not a commit record"),
        (damage_items, "plan/items-.*changed since it was planned"),
        (swap_items, "plan/items-.*changed since it was planned"),
        (another_plan, r"MANIFEST\.json: belongs to another plan"),
    ],
)
def test_verify_names_what_is_wrong(
    storage: Storage, settings: Settings, damage: Callable[[Storage, Plan], None], named: str
) -> None:
    plan, _ = finish(storage)
    damage(storage, plan)
    report = verify(storage.uri, settings)
    assert not report.ok
    assert any(re.search(named, problem) for problem in report.problems), report.problems


@folder_only
def test_verify_finds_an_item_that_is_lost_and_one_that_stands_twice(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage)
    for shard in plan.shards[1:]:
        commit(storage, plan, items, shard)
    rows = items_of(plan, items, "000000")
    twice = [annotation(row, plan, "000000") for row in [rows[1], *rows[1:-1], rows[1]]]
    commit_shard(storage, plan, "000000", result_of(twice[:-1], [quarantine(rows[0], plan, "000000")]))
    publish(storage, plan, [read_commit(storage, shard) for shard in plan.shards])
    report = verify(storage.uri, settings)
    assert "shard 000000: 1 items missing: i07" in report.problems
    assert "shard 000000: 1 items more than once: i01" in report.problems


@folder_only
def test_verify_of_an_unfinished_run_says_what_is_missing(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage)
    commit(storage, plan, items, "000000")
    problems = verify(storage.uri, settings).problems
    assert "shard 000001: not committed" in problems
    assert any("no published annotations" in problem for problem in problems)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("settings", ["folder"], indirect=True)
def test_a_ray_dataset_reads_exactly_the_published_files(storage: Storage, settings: Settings) -> None:
    plan, _ = finish(storage)
    (first, *_), table = storage.list("data/"), read_annotations(storage.uri, settings.storage)
    storage.write(f"data/{plan.shards[0]}-{'0' * 16}.parquet", storage.read(first.path))  # of an attempt that lost
    rows = to_ray(storage.uri, settings.storage, ["id", "valence"]).take_all()
    assert sorted(row["id"] for row in rows) == sorted(table["id"].to_pylist())
    assert set(rows[0]) == {"id", "valence"}

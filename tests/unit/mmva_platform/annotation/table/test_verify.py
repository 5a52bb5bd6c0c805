"""Damage to a published annotation, on a folder and on S3: what `verify` names, and what readers refuse."""

import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.plan.plan import Plan, plan_file
from mmva_platform.annotation.table.commit import CommitRecord, ShardResult, commit_path, commit_shard, read_commit
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.annotation.table.verify import verify
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage

from ....helpers.committed import (
    annotation,
    commit,
    commit_all_but_first,
    data_file,
    embedding,
    finish,
    planned,
    publish_committed,
    quarantine,
    result_of,
    silently_changed,
)

folder_only = pytest.mark.parametrize("settings", ["folder"], indirect=True)

Damage = Callable[[Storage, Plan], None]


def embedding_file(storage: Storage, shard: str) -> str:
    (path,) = read_commit(storage, 0, shard).embeddings
    return path


def change_data(storage: Storage, plan: Plan) -> None:
    """Other points, which read without an error."""
    path = data_file(storage, plan.shards[1]).path
    storage.write(path, silently_changed(storage.read(path)))


def damage_data(storage: Storage, plan: Plan) -> None:
    """A page that cannot be decompressed."""
    path = data_file(storage, plan.shards[1]).path
    data = storage.read(path)
    storage.write(path, data[:8] + bytes(16) + data[24:])


def cut_data(storage: Storage, plan: Plan) -> None:
    path = data_file(storage, plan.shards[1]).path
    storage.write(path, storage.read(path)[:100])


def lose_data(storage: Storage, plan: Plan) -> None:
    storage.delete(data_file(storage, plan.shards[1]).path)


def swap_quarantine(storage: Storage, plan: Plan) -> None:
    mine, other = (data_file(storage, shard, "quarantined").path for shard in (plan.shards[1], plan.shards[0]))
    storage.write(mine, storage.read(other))


def change_embeddings(storage: Storage, plan: Plan) -> None:
    path = embedding_file(storage, plan.shards[1])
    storage.write(path, silently_changed(storage.read(path), column=1))


def lose_embeddings(storage: Storage, plan: Plan) -> None:
    storage.delete(embedding_file(storage, plan.shards[1]))


def swap_embeddings(storage: Storage, plan: Plan) -> None:
    storage.write(embedding_file(storage, plan.shards[1]), storage.read(embedding_file(storage, plan.shards[2])))


def damage_commit(storage: Storage, plan: Plan) -> None:
    storage.write(commit_path(0, plan.shards[1]), b"{}")


def lose_commit(storage: Storage, plan: Plan) -> None:
    storage.delete(commit_path(0, plan.shards[1]))


def add_commit(storage: Storage, plan: Plan) -> None:
    storage.write(commit_path(0, "000099"), storage.read(commit_path(0, plan.shards[1])))


def rewrite_commit(storage: Storage, plan: Plan, change: Callable[[CommitRecord], dict[str, Any]]) -> None:
    record = read_commit(storage, 0, plan.shards[1])
    storage.write(commit_path(0, plan.shards[1]), record.model_copy(update=change(record)).model_dump_json().encode())


def change_counts(storage: Storage, plan: Plan) -> None:
    rewrite_commit(storage, plan, lambda record: {"ok": record.ok + 1, "quarantined": record.quarantined - 1})


def forget_files(storage: Storage, plan: Plan) -> None:
    rewrite_commit(storage, plan, lambda record: {"files": record.files[:1]})


def name_another_file(storage: Storage, plan: Plan) -> None:
    def change(record: CommitRecord) -> dict[str, Any]:
        path = record.files[0].path.replace("000001-", "000001-a")
        return {"files": (*record.files, record.files[0].model_copy(update={"path": path}))}

    rewrite_commit(storage, plan, change)


def damage_items(storage: Storage, plan: Plan) -> None:
    storage.write(plan.parts[0].path, b"")


def lose_items(storage: Storage, plan: Plan) -> None:
    storage.delete(plan.parts[0].path)


def swap_items(storage: Storage, plan: Plan) -> None:
    """Another table of the same shape in place of the planned items."""
    (part,) = plan.parts
    sink, items = pa.BufferOutputStream(), pq.read_table(pa.BufferReader(storage.read(part.path)))
    uris = pa.array([f"/m/{number}.png" for number in range(items.num_rows)], pa.large_string())
    pq.write_table(items.set_column(1, items.schema.field("uri"), uris), sink, row_group_size=8)
    storage.write(part.path, bytes(sink.getvalue()))


def another_plan(storage: Storage, plan: Plan) -> None:
    storage.write(plan_file(0), plan.model_copy(update={"run_id": "another"}).model_dump_json().encode())


def lose_record(storage: Storage, plan: Plan) -> None:
    storage.delete(f"{plan.folder}/version.json")


DAMAGES: list[tuple[Damage, str]] = [
    (change_data, "^status=ok/modality=image/000000-000001-.*: changed since it was written"),
    (damage_data, "^status=ok/modality=image/000000-000001-.*: changed since it was written"),
    (cut_data, "^status=ok/modality=image/000000-000001-.*: changed since it was written"),
    (lose_data, "^status=ok/modality=image/000000-000001-.*: cannot be read"),
    (swap_quarantine, "^status=quarantined/modality=image/000000-000001-.*: changed since it was written"),
    (change_embeddings, "embeddings/000001-.*: changed since it was written"),
    (lose_embeddings, "embeddings/000001-.*: cannot be read"),
    (swap_embeddings, "embeddings/000001-.*: changed since it was written"),
    (damage_commit, r"commits/000001\.json: not a commit record"),
    (lose_commit, "^shard 000001: not committed"),
    (add_commit, "^shard 000099: not in the plan"),
    (change_counts, "^version 0: its totals are not the sum of its commit records"),
    (forget_files, "^version 0: 1 files that no commit names are in the table: status=quarantined/.*000000-000001-"),
    (name_another_file, "^version 0: 1 committed files are not in the table, such as status=ok/.*000000-000001-a"),
    (damage_items, "plan/items-.*changed since it was planned"),
    (lose_items, "plan/items-"),
    (swap_items, "plan/items-.*changed since it was planned"),
    (another_plan, "^version 0: its record belongs to another plan"),
    (lose_record, "version 0 is not published .*version.json is missing"),
]


@folder_only
@pytest.mark.parametrize(("damage", "named"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_verify_names_what_is_wrong(storage: Storage, settings: Settings, damage: Damage, named: str) -> None:
    verify_names(storage, settings, damage, named)


@pytest.mark.parametrize("settings", ["s3"], indirect=True)
@pytest.mark.parametrize("damage", [lose_data, lose_embeddings, lose_commit, lose_items])
def test_verify_names_what_is_missing_on_s3(storage: Storage, settings: Settings, damage: Damage) -> None:
    verify_names(storage, settings, damage, dict(DAMAGES)[damage])


def verify_names(storage: Storage, settings: Settings, damage: Damage, named: str) -> None:
    plan, _ = finish(storage)
    damage(storage, plan)
    report = verify(storage.uri, settings)
    assert not report.ok
    assert any(re.search(named, problem) for problem in report.problems), report.problems
    assert "problems (40 items = " in report.to_text()


@folder_only
def test_verify_finds_an_item_that_is_lost_and_one_that_is_there_twice(storage: Storage, settings: Settings) -> None:
    plan, rows = commit_all_but_first(storage)
    twice = [annotation(row, plan, "000000") for row in [rows[1], *rows[1:-1]]]
    commit_shard(storage, plan, "000000", result_of(twice, [quarantine(rows[0], plan, "000000")]))
    publish_committed(storage, plan)
    assert verify(storage.uri, settings).problems == (
        "shard 000000: 1 items missing: i07",
        "shard 000000: 1 items more than once: i01",
        "1 items are there more than once",
    )


@folder_only
def test_verify_finds_an_item_that_two_shards_have(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage)
    for shard in plan.shards[1:]:
        commit(storage, plan, items, shard)
    (first, *rows), of_another = items.slice(0, 7).to_pylist(), items.slice(12, 1).to_pylist()
    ok = [annotation(row, plan, "000000") for row in rows + of_another]
    commit_shard(storage, plan, "000000", result_of(ok, [quarantine(first, plan, "000000")]))
    publish_committed(storage, plan)
    assert verify(storage.uri, settings).problems == (
        "shard 000000: 1 items missing: i07",
        "shard 000000: 1 items not in the plan: i12",
        "1 items are there more than once",
    )


@folder_only
@pytest.mark.parametrize(
    ("row", "named"),
    [
        (None, r"^status=ok/.*/000000-000000-.*: has rows without an embedding$"),
        (99, r"^status=ok/.*/000000-000000-.*: refers to rows that .*/embeddings/000001-.* does not have$"),
        (-1, r"^status=ok/.*/000000-000000-.*: refers to rows that .*/embeddings/000001-.* does not have$"),
        (2, r"^status=ok/.*/000000-000000-.*: 7 items refer to another's embedding: i01, i02, i03, i04, i05$"),
    ],
)
def test_verify_finds_rows_that_refer_to_nothing_or_to_anothers_embedding(
    storage: Storage, settings: Settings, row: int | None, named: str
) -> None:
    plan, (first, *others) = commit_all_but_first(storage)
    reference = {} if row is None else {"embedding_file": embedding_file(storage, "000001"), "embedding_row": row}
    ok = [annotation(item, plan, "000000") | reference for item in others]
    commit_shard(storage, plan, "000000", result_of(ok, [quarantine(first, plan, "000000")], embeddings=[]))
    publish_committed(storage, plan)
    (problem,) = verify(storage.uri, settings).problems
    assert re.search(named, problem), problem


@folder_only
def test_verify_finds_embeddings_of_other_items(storage: Storage, settings: Settings) -> None:
    plan, (first, *others) = commit_all_but_first(storage)
    ok = [annotation(item, plan, "000000") for item in others]
    mixed_up = [embedding(item["id"]) for item in [others[1], others[0], *others[2:]]]
    commit_shard(storage, plan, "000000", result_of(ok, [quarantine(first, plan, "000000")], mixed_up))
    publish_committed(storage, plan)
    (problem,) = verify(storage.uri, settings).problems
    assert problem.endswith(": 2 items refer to another's embedding: i01, i02")


@folder_only
def test_verify_finds_a_file_of_other_columns_under_its_right_digest(storage: Storage, settings: Settings) -> None:
    plan, (first, *others) = commit_all_but_first(storage)
    ok = [annotation(item, plan, "000000") for item in others]
    result = result_of(ok, [quarantine(first, plan, "000000")])
    narrower = result.embeddings.drop_columns("windows")
    commit_shard(storage, plan, "000000", ShardResult(result.ok, result.quarantined, narrower, result.work))
    publish_committed(storage, plan)
    (problem,) = verify(storage.uri, settings).problems
    assert re.search(r"embeddings/000000-.*: its columns are not those of this format", problem)


def test_verify_of_an_unfinished_run_says_how_far_it_is(storage: Storage, settings: Settings) -> None:
    plan, items = planned(storage)
    commit(storage, plan, items, "000000")
    report = verify(storage.uri, settings)
    assert report.problems == ("not published: 1 of 5 shards are committed; `mmva annotations resume`",)
    assert (report.version, report.items) == (None, 40)
    for shard in plan.shards:
        commit(storage, plan, items, shard)
    assert verify(storage.uri, settings).problems == (
        "not published: 5 of 5 shards are committed; `mmva annotations resume`",
    )


@folder_only
def test_verify_without_an_annotation_or_a_version_is_a_users_mistake(storage: Storage, settings: Settings) -> None:
    with pytest.raises(UsageError, match="no annotation here"):
        verify(storage.uri, settings)
    finish(storage)
    with pytest.raises(UsageError, match="there is no version 1; versions are 0 to 0"):
        verify(storage.uri, settings, version=1)
    assert verify(storage.uri, settings, version=0).ok


# --- readers


@pytest.mark.parametrize("column", [0, 3])
def test_readers_refuse_a_page_of_which_one_byte_has_changed(storage: Storage, column: int) -> None:
    plan, _ = finish(storage)
    path = data_file(storage, plan.shards[1]).path
    data = storage.read(path)
    changed = silently_changed(data, column=column)
    assert sum(one != other for one, other in zip(data, changed, strict=True)) == 1
    storage.write(path, changed)
    with pytest.raises(CheckFailed, match=rf"{re.escape(storage.join(path))}: damaged \(.*"):
        open_annotation(storage).table()


def test_readers_refuse_embeddings_of_which_one_byte_has_changed(storage: Storage) -> None:
    plan, _ = finish(storage)
    path = embedding_file(storage, plan.shards[1])
    storage.write(path, silently_changed(storage.read(path), column=1))
    assert open_annotation(storage).table().num_rows == 35  # they are not read if they are not asked for
    with pytest.raises(CheckFailed, match=rf"{re.escape(storage.join(path))}: damaged \(.*"):
        open_annotation(storage).table(["id", "embedding"])


@pytest.mark.parametrize("status", ["ok", "quarantined"])
def test_readers_name_a_file_that_is_missing_or_cut_short(storage: Storage, status: str) -> None:
    plan, _ = finish(storage)
    path = data_file(storage, plan.shards[1], status).path
    storage.write(path, storage.read(path)[:-1])
    with pytest.raises(CheckFailed, match=rf"{re.escape(storage.join(path))}: damaged \(.*"):
        open_annotation(storage).table(status=status)
    storage.delete(path)
    with pytest.raises(CheckFailed, match=rf"{re.escape(storage.join(path))}: is missing"):
        open_annotation(storage).table(status=status)


def test_readers_name_a_file_of_another_table(storage: Storage) -> None:
    plan, _ = finish(storage)
    path = data_file(storage, plan.shards[1]).path
    other = open_annotation(storage).table(["id"]).slice(0, 3)
    sink = pa.BufferOutputStream()
    pq.write_table(other, sink)
    storage.write(path, bytes(sink.getvalue()))
    with pytest.raises(CheckFailed, match=rf"{re.escape(storage.join(path))}: its columns are not those"):
        open_annotation(storage).table()
    with pytest.raises(CheckFailed, match=rf"{re.escape(storage.join(path))}: 3 rows, the table says 7"):
        open_annotation(storage).table(["id"])

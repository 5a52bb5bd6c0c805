"""`open_annotation` reads what is asked for and nothing else, and joins embeddings to the right rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation import open_annotation
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, EMBEDDING_FILE_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.annotation.table import reader
from mmva_platform.annotation.table.commit import commit_shard
from mmva_platform.storage import Storage, open_storage
from mmva_platform.storage.s3 import BUFFER_BYTES, Part, RangeFile

from ....helpers.committed import (
    annotation,
    data_file,
    finish,
    items_of,
    planned,
    publish_committed,
    quarantine,
    result_of,
    silently_changed,
)
from ....helpers.versions import World

POINTS = ["id", "modality", "valence", "arousal", "mood"]
HEAVY = ["id", "embedding", "window_embeddings"]


@pytest.fixture
def place(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "va")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Files that are read, and their columns."""
    found: list[tuple[str, list[str]]] = []

    def spy(storage: Storage, path: str, columns: list[str]) -> pa.Table:
        found.append((path, list(columns)))
        return read_columns(storage, path, columns)

    read_columns = reader.read_columns
    monkeypatch.setattr(reader, "read_columns", spy)
    return found


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A version whose data files refer to rows of the embeddings of several versions."""
    world = World.made(monkeypatch, tmp_path_factory)
    world.annotate()
    for number in range(2):
        world.picture(f"i{number}.png")
        world.picture(f"n{number}.png")
        world.text(f"c{number}.txt")
        world.update()
    world.update(1)
    return world


def test_only_the_columns_that_are_asked_for_are_read_and_no_embeddings(
    storage: Storage, reads: list[tuple[str, list[str]]]
) -> None:
    finish(storage)
    found = open_annotation(storage)
    table = found.table(POINTS)
    assert table.column_names == POINTS
    assert set(table["modality"].to_pylist()) == {"image"}
    assert sorted(reads) == sorted((file.path, ["id", "valence", "arousal", "mood"]) for file in found.files())
    reads.clear()
    found.table(["embedding"])
    files = [path for path, columns in reads if columns == ["embedding"]]
    assert len(files) == len(found.files())
    assert all("/embeddings/" in path for path in files)
    assert {tuple(columns) for path, columns in reads if path not in files} == {("embedding_file", "embedding_row")}


class Remote:
    """A file that is read by ranges, as on S3, and how many bytes of it were."""

    def __init__(self, data: bytes) -> None:
        self._data, self.read_bytes = data, 0

    def local_path(self, _path: str) -> None:
        return None

    def open(self, _path: str) -> BinaryIO:
        return cast("BinaryIO", io.BufferedReader(RangeFile(self._fetch), BUFFER_BYTES))

    def _fetch(self, span: str, _etag: str | None) -> Part:
        first, last = span.removeprefix("bytes=").split("-")
        part = self._data[int(first) : int(last) + 1] if first else self._data[-int(last) :]
        self.read_bytes += len(part)
        return Part(part, len(self._data), "etag")


def test_few_bytes_of_a_remote_file_are_read_for_one_column() -> None:
    values_N = np.random.default_rng(0).random(300_000)
    table = pa.table({"id": [f"{number:064x}" for number in range(len(values_N))], "valence": values_N})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="NONE", use_dictionary=False, write_page_checksum=True)
    remote = Remote(sink.getvalue().to_pybytes())
    found = reader.read_columns(cast("Storage", remote), "a.parquet", ["valence"])
    assert found.equals(table.select(["valence"]))
    assert values_N.nbytes <= remote.read_bytes < 3 * values_N.nbytes < sink.getvalue().size / 2


def test_embeddings_are_joined_to_their_rows_where_files_of_several_versions_are_mixed(mixed: World) -> None:
    found = open_annotation(mixed.out)
    references = found.table(["id", "modality", "embedding_file", "embedding_row"]).to_pylist()
    assert len({row["embedding_file"] for row in references if row["modality"] == "image"}) == 3
    root = Path(mixed.out)
    stored = {name: pq.read_table(root / name).to_pylist() for name in {row["embedding_file"] for row in references}}
    rows = found.table([*HEAVY, "sha256"]).to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in references]
    for row, reference in zip(rows, references, strict=True):
        wanted = stored[reference["embedding_file"]][reference["embedding_row"]]
        assert (row["id"], row["embedding"]) == (wanted["id"], wanted["embedding"])
        assert (row["window_embeddings"] or None) == wanted["windows"]
    mixed.annotate(1, out=str(mixed.folder / "fresh"))
    fresh = mixed.rows(HEAVY, out=str(mixed.folder / "fresh")).to_pylist()
    for row, other in zip(sorted(rows, key=lambda row: row["id"]), fresh, strict=True):
        assert row["id"] == other["id"]
        np.testing.assert_allclose(row["embedding"], other["embedding"], atol=1e-5)


def test_embeddings_of_rows_in_any_order(place: Storage) -> None:
    finish(place)
    found = open_annotation(place)
    rows = found.table(["id", "embedding_file", "embedding_row"])
    for order in (np.random.default_rng(0).permutation(35), np.array([34, 3, 3, 0]), np.array([], int)):
        taken = rows.take(pa.array(order))
        joined = found.embeddings_of(taken, ["id", "embedding"])
        assert joined["id"].to_pylist() == taken["id"].to_pylist()
        numbers = [float(name.removeprefix("i")) for name in taken["id"].to_pylist()]
        assert [values[0] for values in joined["embedding"].to_pylist()] == numbers


def test_columns_come_in_the_order_asked_for_with_the_types_of_the_schema(place: Storage) -> None:
    finish(place)
    found = open_annotation(place)
    assert found.table().schema.equals(ANNOTATION_SCHEMA)
    assert found.table(status="quarantined").schema.equals(QUARANTINE_SCHEMA)
    mixed = found.table(["window_embeddings", "modality", "id", "embedding", "embedding_row"])
    assert mixed.column_names == ["window_embeddings", "modality", "id", "embedding", "embedding_row"]
    assert mixed.schema.field("embedding").type == EMBEDDING_FILE_SCHEMA.field("embedding").type
    assert [table.num_rows for table in found.tables(["modality"])] == [file.rows for file in found.files()]
    assert (found.count(), found.count("quarantined"), found.count(modality="music")) == (35, 5, 0)
    assert (found.table(["id"], modality="image").num_rows, found.table(["id"], modality="music").num_rows) == (35, 0)


@pytest.mark.parametrize(
    ("columns", "status"), [(["colour"], "ok"), (["embedding"], "quarantined"), (["id", "stage"], "ok")]
)
def test_an_unknown_column_is_named_with_those_that_exist(place: Storage, columns: list[str], status: str) -> None:
    finish(place)
    for call in (
        lambda: open_annotation(place).table(columns, status),
        lambda: next(open_annotation(place).tables(columns, status)),
    ):
        with pytest.raises(UsageError, match=f"no column '{columns[-1]}'; there are id, uri, "):
            call()


def test_a_version_without_annotated_items_is_an_empty_table(place: Storage) -> None:
    finish(place, count=4, shard_items=1)
    found = open_annotation(place)
    assert (found.count(), found.count("quarantined")) == (0, 4)
    empty = found.table([*POINTS, *HEAVY[1:]])
    assert (empty.num_rows, empty.column_names) == (0, [*POINTS, *HEAVY[1:]])


def test_a_few_files_are_read_ahead_and_no_more(place: Storage, reads: list[tuple[str, list[str]]]) -> None:
    finish(place, shard_items=1)
    tables = open_annotation(place).tables(["id"], "quarantined")
    assert len(open_annotation(place).files("quarantined")) == 40
    next(tables)
    assert 1 <= len(reads) <= 9
    assert sum(table.num_rows for table in tables) == 39
    assert len(reads) == 40


@pytest.mark.parametrize("change", ["missing", "damaged", "another byte", "fewer rows"])
def test_a_file_that_is_not_the_one_that_was_written_is_named(place: Storage, change: str) -> None:
    finish(place)
    path = data_file(place, "000001").path
    data = place.read(path)
    if change == "missing":
        place.delete(path)
    elif change == "damaged":
        place.write(path, data[:100])
    elif change == "another byte":
        place.write(path, silently_changed(data))
    else:
        place.write(path, place.read(data_file(place, "000000").path))
        other = pq.read_table(pa.BufferReader(data)).slice(1)
        sink = pa.BufferOutputStream()
        pq.write_table(other, sink)
        place.write(path, sink.getvalue().to_pybytes())
    with pytest.raises(CheckFailed, match=path) as caught:
        open_annotation(place).table(["id"])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("row", [None, -1, 8, 99])
def test_a_reference_to_no_embedding_is_an_error(place: Storage, row: int | None) -> None:
    plan, items = planned(place, count=16, shard_items=8)
    first = items_of(plan, items, "000000")
    commit_shard(place, plan, "000000", result_of([annotation(each, plan, "000000") for each in first], []))
    (file,) = [entry.path for entry in place.list("_mmva/000000/embeddings/")]
    wrong = {"embedding_file": None if row is None else file, "embedding_row": row}
    last, *others = [annotation(each, plan, "000001") for each in items_of(plan, items, "000001")]
    bad = [quarantine(each, plan, "000001") for each in items_of(plan, items, "000001")[1:]]
    commit_shard(place, plan, "000001", result_of([last | wrong], bad, embeddings=[]))
    publish_committed(place, plan)
    assert len(others) == len(bad)
    found = open_annotation(place)
    assert found.table(["id", "valence"]).num_rows == 9
    with pytest.raises(CheckFailed, match="run verify"):
        found.table(["id", "embedding"])

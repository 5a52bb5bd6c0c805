"""`export` writes a version into one plain file, or leaves nothing behind."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation import export, open_annotation
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage

from ....helpers.committed import finish
from ....helpers.versions import STARTING_OK, World

folder_only = pytest.mark.parametrize("settings", ["folder"], indirect=True)
CAPTIONS = sorted(name for name in STARTING_OK if name.endswith(".txt"))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.made(monkeypatch, tmp_path_factory, two_versions)


def two_versions(world: World) -> None:
    """The second one has a caption less."""
    world.annotate()
    (world.media / CAPTIONS[0]).unlink()
    world.update()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "exported").mkdir()
    return tmp_path / "exported" / "file"


def rows_of_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_csv_has_a_line_for_each_item_and_every_flat_column(world: World, file: Path) -> None:
    assert export(world.out, file, world.settings, to="csv") == len(STARTING_OK) - 1
    found = {row["id"]: row for row in rows_of_csv(file)}
    assert sorted(found) == sorted(STARTING_OK - {CAPTIONS[0]})
    for row in world.rows().to_pylist():
        assert float(found[row["id"]]["valence"]) == pytest.approx(row["valence"], abs=1e-6)
        assert (found[row["id"]]["modality"], found[row["id"]]["mood"]) == (row["modality"], row["mood"])
    left_out = {"windows", "tracks", "embedding_file", "embedding_row", "item_digest"}
    assert set(found["m0.wav"]) == set(ANNOTATION_SCHEMA.names) - left_out


def test_columns_modality_and_version_choose_what_is_written(world: World, file: Path) -> None:
    options: dict[str, Any] = {"columns": ["arousal", "id"], "modality": "caption"}
    assert export(world.out, file, world.settings, to="csv", version=0, **options) == 4
    assert [list(row) for row in rows_of_csv(file)] == [["arousal", "id"]] * 4
    newer = file.with_name("newer")
    assert export(world.out, newer, world.settings, to="csv", **options) == 3
    assert sorted(row["id"] for row in rows_of_csv(newer)) == CAPTIONS[1:]


def test_parquet_has_the_rows_and_their_embeddings_when_asked(world: World, file: Path) -> None:
    columns = ["id", "windows", "embedding", "window_embeddings"]
    assert export(world.out, file, world.settings, to="parquet", columns=columns) == len(STARTING_OK) - 1
    assert pq.read_table(file).sort_by("id").equals(world.rows(columns))
    other = file.with_name("default")
    export(world.out, other, world.settings, to="parquet")
    names = pq.read_schema(other).names
    assert {"id", "windows", "tracks", "caption"} <= set(names)
    assert not {"embedding", "embedding_file", "embedding_row", "item_digest"} & set(names)


def test_lance_has_embeddings_of_fixed_length_that_can_be_searched(world: World, file: Path) -> None:
    assert export(world.out, file, world.settings, to="lance", modality="image") == 6
    dataset = lance.dataset(str(file))
    mine = open_annotation(world.out).table(["id", "embedding"], modality="image").sort_by("id")
    width = len(mine["embedding"][0])
    assert dataset.schema.field("embedding").type == pa.list_(pa.float32(), width)
    found = dataset.to_table(columns=["id", "embedding"]).sort_by("id")
    assert found["id"].equals(mine["id"])
    np.testing.assert_array_equal(np.array(found["embedding"].to_pylist()), np.array(mine["embedding"].to_pylist()))
    query = np.array(mine["embedding"][4].as_py(), np.float32)
    (nearest,) = dataset.to_table(nearest={"column": "embedding", "q": query, "k": 1})["id"].to_pylist()
    assert nearest == mine["id"][4].as_py()


def test_lance_without_embeddings_and_from_many_files(storage: Storage, settings: Settings, file: Path) -> None:
    finish(storage)
    options: dict[str, Any] = {"to": "lance", "columns": ["id", "valence"], "modality": "image"}
    assert export(storage.uri, file, settings, **options) == 35
    assert lance.dataset(str(file)).count_rows() == 35
    assert export(storage.uri, file.with_name("csv"), settings, to="csv") == 35


@folder_only
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "xml"}, "choose one of csv, parquet, lance"),
        ({"to": "csv", "columns": ["id", "colour"]}, "no column 'colour'"),
        ({"to": "csv", "columns": ["id", "windows", "embedding"]}, "cannot hold windows, embedding"),
        ({"to": "lance"}, "name a --modality"),
        ({"to": "parquet", "modality": "video"}, "no annotated item of modality video"),
        ({"to": "parquet", "version": 7}, "no version 7"),
    ],
)
def test_what_cannot_be_exported_is_an_error_and_leaves_nothing(
    storage: Storage, settings: Settings, file: Path, options: dict[str, Any], message: str
) -> None:
    finish(storage)
    with pytest.raises(UsageError, match=message):
        export(storage.uri, file, settings, **options)
    assert list(file.parent.iterdir()) == []


@folder_only
def test_an_existing_file_stays_and_the_folder_must_exist(storage: Storage, settings: Settings, file: Path) -> None:
    finish(storage)
    file.write_text("mine")
    for place in (file, file.parent, file.parent / "missing" / "file"):
        with pytest.raises(UsageError, match="export writes a new file into a folder that exists"):
            export(storage.uri, place, settings, to="csv")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("to", ["csv", "parquet", "lance"])
def test_a_damaged_file_ends_the_export_and_leaves_nothing(
    storage: Storage, settings: Settings, file: Path, to: str
) -> None:
    finish(storage)
    storage.write(open_annotation(storage).files()[-1].path, b"damaged")
    with pytest.raises(CheckFailed, match="damaged") as caught:
        export(storage.uri, file, settings, to=to, columns=["id"], modality="image")
    assert len(str(caught.value).splitlines()) == 1
    assert list(file.parent.iterdir()) == []


@folder_only
def test_lance_refuses_videos_whose_embeddings_differ_in_length(
    storage: Storage, settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(storage)
    read: Callable[..., pa.Table] = pa.Table.from_arrays
    tracks = pa.array([["image"], ["image", "music"]] * 4, ANNOTATION_SCHEMA.field("tracks").type)

    def with_tracks(_self: Any, found: Any, columns: list[str]) -> pa.Table:
        assert columns == ["tracks"]
        return read([tracks[: found.rows]], names=columns)

    monkeypatch.setattr("mmva_platform.annotation.table.reader.Annotation.read", with_tracks)
    with pytest.raises(UsageError, match="videos with and without sound"):
        export(storage.uri, file, settings, to="lance", modality="image")


@folder_only
def test_lance_names_the_package_that_is_missing(
    storage: Storage, settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(storage)
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(UsageError, match=r"pip install 'mmva-platform\[lance\]'"):
        export(storage.uri, file, settings, to="lance", modality="image")

"""`convert` makes a table of an annotation of the earlier format (schema 2), which stays as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from mmva.errors import CheckFailed, UsageError
from mmva.inference.tables import ERROR_SCHEMA, ROW_SCHEMA, WINDOW_SCHEMA
from mmva_platform.annotation import open_annotation, verify
from mmva_platform.annotation.plan.plan import read_plan
from mmva_platform.annotation.run.convert import convert
from mmva_platform.annotation.schema import CATALOG_SCHEMA, STAMP_SCHEMA
from mmva_platform.annotation.table.publish import read_record
from mmva_platform.storage import open_storage

from ....helpers.planned import iter_items
from ....helpers.versions import BAD, POINTS, STARTING_OK, World, close, killed

OLD_ROWS = pa.schema([*ROW_SCHEMA, *STAMP_SCHEMA])
OLD_WINDOWS = WINDOW_SCHEMA.set(3, pa.field("embedding", pa.list_(pa.float16()), nullable=False))
OLD_QUARANTINE = pa.schema(
    [*ERROR_SCHEMA, pa.field("attempts", pa.int32()), pa.field("run_id", pa.string()), pa.field("shard", pa.string())]
)
EVERYTHING = ["embedding", "window_embeddings"]


class OldRun:
    """Writes a generation of the old format."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder, self._shards = folder, list[dict[str, Any]]()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "plan.json").exists():
            (folder / "plan.json").write_text(json.dumps({"run_id": run_id}))

    def commit(self, **tables: list[dict[str, Any]]) -> None:
        """A shard with rows of "data", "quarantine" and "windows"."""
        shard = f"{len(self._shards):06d}"
        schemas = {"data": OLD_ROWS, "quarantine": OLD_QUARANTINE, "windows": OLD_WINDOWS}
        record: dict[str, Any] = {"shard": shard}
        for name, schema in schemas.items():
            record[name] = self._file(name, shard, pa.Table.from_pylist(tables.get(name, []), schema))
        self._shards.append(record)

    def publish(self) -> None:
        """Write the manifest."""
        (self._folder / "MANIFEST.json").write_text(json.dumps({"annotation_version": 2, "shards": self._shards}))

    def _file(self, name: str, shard: str, table: pa.Table) -> dict[str, Any] | None:
        if not table.num_rows:
            return None
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        data = sink.getvalue().to_pybytes()
        digest = hashlib.sha256(data).hexdigest()
        path = self._folder / name / f"{shard}-{digest[:16]}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        relative = str(path.relative_to(self._folder))
        return {"path": relative, "rows": table.num_rows, "size": len(data), "sha256": digest}


def write_old(world: World, folder: Path) -> None:
    """What schema 2 would have written for the world's annotation, in which a retry has annotated `bad2.png`."""
    storage = open_storage(world.out)
    plan = read_plan(storage)
    items = pa.concat_tables(iter_items(storage, plan)).select(CATALOG_SCHEMA.names)
    (folder / "plan").mkdir(parents=True)
    items = items.append_column("base_file", pa.nulls(items.num_rows, pa.large_string()))
    pq.write_table(items.slice(0, 5), folder / "plan" / "items-000000-aa.parquet")
    pq.write_table(items.slice(5), folder / "plan" / "items-000001-bb.parquet")
    described = json.loads(plan.model_dump_json(exclude={"version", "kind", "parts"}))
    described |= {"annotation_version": 2, "generation": 1, "base": None, "parts": []}
    (folder / "plan.json").write_text(json.dumps(described))
    rows = open_annotation(world.out).table([*OLD_ROWS.names, "window_embeddings"]).to_pylist()
    quarantine = world.quarantine().select(OLD_QUARANTINE.names).to_pylist()
    windows = [{"id": row["id"], **window} for row in rows for window in row.pop("window_embeddings") or ()]
    first, retry = OldRun(folder, plan.run_id), OldRun(folder / "retries" / "0001", "retry")
    first.commit(data=[row for row in rows if row["modality"] != "image"], windows=windows)
    first.commit(data=[row for row in rows if row["modality"] == "image"], quarantine=quarantine[:1])
    first.commit(quarantine=quarantine[1:])
    first.publish()
    (copied,) = [row for row in rows if row["id"] == "i1.png"]
    retry.commit(
        data=[copied | {"id": "bad2.png", "uri": f"{world.media}/bad2.png"}],
        quarantine=[quarantine[0] | {"attempts": 2}],
    )
    retry.publish()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Its `out` is for what is converted; what the old annotation was written from is elsewhere."""
    original = World.made(monkeypatch, tmp_path_factory, annotated_in_the_old_format)
    return replace(original, folder=original.folder / "converted")


def annotated_in_the_old_format(original: World) -> None:
    original.text("bad2.png")
    original.annotate()
    write_old(original, original.folder / "old")


@pytest.fixture
def old(world: World) -> str:
    return str(world.folder.parent / "old")


def bytes_of(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def original(world: World) -> str:
    return str(world.folder.parent / "va")


def test_every_row_embedding_window_and_the_last_quarantine_arrive(world: World, old: str) -> None:
    before = bytes_of(old)
    summary = convert(old, world.out, world.settings)
    assert (summary.ok, summary.quarantined, summary.version) == (len(STARTING_OK) + 1, 1, 0)
    world.check(STARTING_OK | {"bad2.png"}, BAD)
    assert bytes_of(old) == before
    columns = [*OLD_ROWS.names, "caption", "item_digest", *EVERYTHING]
    mine = [row for row in world.rows(columns).to_pylist() if row["id"] != "bad2.png"]
    theirs = world.rows(columns, out=original(world)).to_pylist()
    for row, other in zip(mine, theirs, strict=True):
        assert row == other
    assert world.quarantine()["attempts"].to_pylist() == [2]
    digests = {
        row["id"]: row["item_digest"]
        for row in open_annotation(original(world)).table(status="quarantined").to_pylist()
    }
    assert world.quarantine()["item_digest"].to_pylist() == [digests["bad.png"]]
    (retried,) = [row for row in world.rows().to_pylist() if row["id"] == "bad2.png"]
    assert retried["item_digest"] == digests["bad2.png"]
    assert read_record(open_storage(world.out), 0).kind == "convert"


def test_a_new_model_updates_what_was_converted_and_then_its_quarantine_can_be_retried(world: World, old: str) -> None:
    convert(old, world.out, world.settings)
    with pytest.raises(CheckFailed, match="model"):
        world.retry()
    assert world.update(1).work == {"heads": len(STARTING_OK) + 1}
    media = Path(world.catalog)
    for name in ("bad.png", "new.png"):
        (media / name).write_bytes((media / "i1.png").read_bytes())
    assert world.retry().ok == 1
    (media / "i0.png").unlink()  # the rows of its file are copied beside those of new files
    assert world.update().changes == {"unchanged": 11, "new": 1, "changed": 1, "removed": 1}
    world.check((STARTING_OK | {"bad.png", "bad2.png", "new.png"}) - {"i0.png"}, set())
    fresh = str(world.folder / "fresh")
    world.annotate(1, out=fresh)
    found, wanted = (
        table.filter(pc.not_equal(table["id"], "bad2.png"))  # of the right file here, of another one there
        for table in (world.rows([*POINTS, "id", "windows", "embedding"], out=out) for out in (None, fresh))
    )
    close(found, wanted)
    np.testing.assert_allclose(found["embedding"].to_pylist()[0], wanted["embedding"].to_pylist()[0], atol=1e-5)


@pytest.mark.parametrize(
    "at",
    [
        "mmva_platform.annotation.run.convert.publish",
        "mmva_platform.annotation.table.publish.commit_version",
        "mmva_platform.annotation.run.convert.commit_shard",
    ],
)
def test_a_conversion_that_was_cut_short_is_continued_by_the_next_call(
    world: World, old: str, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    killed(monkeypatch, at, lambda: convert(old, world.out, world.settings))
    with pytest.raises(UsageError, match="no published annotations"):
        open_annotation(world.out)
    summary = convert(old, world.out, world.settings)
    assert summary.resumed_shards == (0 if at.endswith("commit_shard") else summary.shards)
    world.check(STARTING_OK | {"bad2.png"}, BAD)
    before = world.files()
    assert convert(old, world.out, world.settings).resumed_shards == summary.shards
    assert world.files() == before


def test_a_damaged_file_of_the_old_annotation_ends_the_conversion(world: World, old: str) -> None:
    path = min(Path(old).glob("data/*.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckFailed, match="changed since it was written"):
        convert(old, world.out, world.settings)


def test_an_item_that_the_old_plan_does_not_have_ends_the_conversion(world: World, old: str) -> None:
    (Path(old) / "plan" / "items-000001-bb.parquet").unlink()
    with pytest.raises(CheckFailed, match="is annotated but not in the plan"):
        convert(old, world.out, world.settings)


def test_what_is_not_of_the_old_format_is_refused(world: World, old: str) -> None:
    place = Path(old)
    refused: list[tuple[Callable[[], object], str]] = [
        ((place / "MANIFEST.json").unlink, "MANIFEST.json is missing"),
        (lambda: (place / "plan.json").write_text('{"annotation_version": 1}'), "not an annotation of schema 2"),
        (lambda: (place / "plan.json").write_text("{"), "not JSON"),
        ((place / "plan.json").unlink, "plan.json is missing"),
    ]
    for spoil, message in refused:
        spoil()
        with pytest.raises(UsageError, match=message):
            convert(old, world.out, world.settings)
    assert not Path(world.out).exists()
    with pytest.raises(UsageError, match=r"plan\.json is missing"):
        convert(original(world), world.out, world.settings)


def test_an_output_that_holds_something_else_is_refused(world: World, old: str) -> None:
    before = bytes_of(original(world))
    with pytest.raises(UsageError, match="holds another annotation"):
        convert(old, original(world), world.settings)
    assert bytes_of(original(world)) == before
    convert(old, world.out, world.settings)


def test_an_old_annotation_that_was_retried_since_is_not_taken_for_the_converted_one(world: World, old: str) -> None:
    convert(old, world.out, world.settings)
    later = OldRun(Path(old) / "retries" / "0002", "later")
    later.commit(quarantine=world.quarantine().select(OLD_QUARANTINE.names).to_pylist())
    later.publish()
    before = world.files()
    with pytest.raises(UsageError, match="without its last retry"):
        convert(old, world.out, world.settings)
    assert world.files() == before


def test_the_earlier_format_is_named_with_the_verb_that_reads_it(world: World, old: str) -> None:
    for call in (lambda: open_annotation(old), lambda: verify(old, world.settings)):
        with pytest.raises(UsageError, match="`mmva annotations convert`"):
            call()

"""`update` and `retry` make the next version of an annotation from the one before and from what has changed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from mmva.engines.choice import calibrate_bundle
from mmva.errors import CheckFailed, UsageError
from mmva.media.limits import DECODERS
from mmva_platform.annotation import AnnotationSummary, clean, open_annotation, resume, status
from mmva_platform.annotation.plan.plan import read_plan
from mmva_platform.annotation.plan.planning import write_plan
from mmva_platform.annotation.run.lookup import CHANGED, Lookup
from mmva_platform.annotation.run.update import preview_update
from mmva_platform.annotation.table.publish import read_record
from mmva_platform.annotation.table.restore import restore
from mmva_platform.storage import open_storage

from ....helpers.committed import catalog_of, finish, table_of
from ....helpers.planned import iter_items
from ....helpers.versions import BAD, STARTING_OK, World, close, killed

PICTURES = {name for name in STARTING_OK if name.endswith(".png")}
CAPTIONS = {name for name in STARTING_OK if name.endswith(".txt")}
STAMPS = ["run_id", "shard", "annotated_at", "model_digest"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Annotated by the first model."""
    return World.made(monkeypatch, tmp_path_factory, World.annotate)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Not annotated."""
    return World.made(monkeypatch, tmp_path_factory)


def changed_media(world: World) -> set[str]:
    """One item new, one changed, one removed; the items that should be annotated now."""
    world.picture("new.png")
    world.text("c1.txt")
    (world.media / "i0.png").unlink()
    return (STARTING_OK | {"new.png"}) - {"i0.png"}


def work(summary: AnnotationSummary) -> dict[str, int]:
    """Items by how they were annotated."""
    return {name: count for name, count in summary.work.items() if count}


def kept_files(world: World, version: int) -> set[str]:
    """Data files that a version has from the one before."""
    now, before = (open_annotation(world.out, version=number).all_files for number in (version, version - 1))
    return {file.path for file in now} & {file.path for file in before}


def test_a_retry_replaces_nothing_but_the_quarantine_and_counts_attempts(bare: World) -> None:
    bare.text("bad2.png")
    bare.annotate()
    bare.check(STARTING_OK, {"bad.png", "bad2.png"})
    before = bare.files()
    bare.picture("bad.png")
    assert work(bare.retry()) == {"media": 1, "quarantined": 1}
    bare.retry()
    for version, ok, bad, attempts in (
        (0, STARTING_OK, {"bad.png", "bad2.png"}, [1, 1]),
        (1, STARTING_OK | BAD, {"bad2.png"}, [2]),
        (2, STARTING_OK | BAD, {"bad2.png"}, [3]),
    ):
        bare.check(ok, bad, version)
        assert bare.quarantine(version)["attempts"].to_pylist() == attempts
    assert kept_files(bare, 1) == {file.path for file in open_annotation(bare.out, version=0).files()}
    after = bare.files()
    assert {path: after[path] for path in before} == before
    # What was repaired has other bytes than its digest says, and comes from its medium again.
    assert work(bare.update()) == {"media": 1}


def test_an_update_annotates_what_is_new_or_changed_and_nothing_else(world: World) -> None:
    before, embeddings = world.files(), set(world.embeddings())
    ok = changed_media(world)
    summary = world.update()
    assert summary.changes == {"unchanged": 10, "new": 1, "changed": 1, "removed": 1}
    assert (work(summary), summary.version) == ({"media": 2, "carried": 8}, 1)
    world.check(ok, BAD)
    world.check(STARTING_OK, BAD, version=0)
    after = world.files()
    assert {path: after[path] for path in before} == before
    root = Path(world.out)
    made = [pq.read_metadata(root / path).num_rows for path in set(world.embeddings()) - embeddings]
    assert sum(made) == 2


def test_items_from_their_media_are_planned_before_rows_that_are_copied(world: World) -> None:
    changed_media(world)
    world.update()
    storage = open_storage(world.out)
    shards = [items["base_file"].is_valid().to_pylist() for items in iter_items(storage, read_plan(storage, 1))]
    assert all(len(set(shard)) == 1 for shard in shards)
    assert [shard[0] for shard in shards] == sorted(shard[0] for shard in shards)
    assert {shard[0] for shard in shards} == {False, True}


def test_a_file_of_which_all_items_are_unchanged_stays_and_other_rows_are_copied_as_they_were(world: World) -> None:
    before = {row["id"]: row for row in world.rows().to_pylist()}
    changed_media(world)
    world.update()
    kept = kept_files(world, 1)
    assert {file.modality for file in open_annotation(world.out).all_files if file.path in kept} >= {"music", "image"}
    after = {row["id"]: row for row in world.rows().to_pylist()}
    for name in after.keys() & before.keys() - {"c1.txt"}:
        assert after[name] == before[name]
    assert after["c1.txt"]["sha256"] != before["c1.txt"]["sha256"]
    assert after["c1.txt"]["run_id"] != before["c1.txt"]["run_id"]


def test_nothing_changed_makes_no_version(world: World) -> None:
    before = world.files()
    summary = world.update()
    assert (summary.version, summary.items, summary.shards) == (0, 0, 0)
    assert world.files() == before


def test_an_update_of_removals_alone_has_no_shards(world: World) -> None:
    for name in CAPTIONS:
        (world.media / name).unlink()
    summary = world.update()
    assert (summary.version, summary.shards, summary.changes) == (
        1, 0, {"unchanged": 8, "new": 0, "changed": 0, "removed": 4},
    )  # fmt: skip
    world.check(STARTING_OK - CAPTIONS, BAD)
    world.check(STARTING_OK, BAD, version=0)
    assert status(world.out, world.settings).published


def test_an_item_that_is_changed_back_is_annotated_as_in_the_beginning(world: World) -> None:
    path = world.media / "i3.png"
    data, at = path.read_bytes(), path.stat()
    world.picture("i3.png")
    assert world.update().changes == {"unchanged": 11, "new": 0, "changed": 1, "removed": 0}
    path.write_bytes(data)
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert world.update().changes == {"unchanged": 11, "new": 0, "changed": 1, "removed": 0}
    world.check(STARTING_OK, BAD)
    first, second, third = (world.rows(version=version) for version in range(3))
    close(first, third)
    for name in ("sha256", "item_digest"):
        assert (third[name].equals(first[name]), third[name].equals(second[name])) == (True, False)


KILLS = (
    "mmva_platform.annotation.run.runner.run_pass",
    "mmva_platform.annotation.run.runner.publish",
    "mmva_platform.annotation.table.publish.commit_version",
)


@pytest.mark.parametrize("at", KILLS)
@pytest.mark.parametrize("again", ["resume", "same call"])
@pytest.mark.parametrize("verb", ["update", "retry"])
def test_a_killed_call_changes_nothing_for_readers_and_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str, again: str, verb: str
) -> None:
    ok, bad = changed_media(world), set(BAD)
    if verb == "retry":
        world.picture("bad.png")
        ok, bad = STARTING_OK | BAD, set()
    call: Callable[[], AnnotationSummary] = getattr(world, verb)
    killed(monkeypatch, at, call)
    world.check(STARTING_OK, BAD)
    state = status(world.out, world.settings)
    assert (state.version, state.published, state.annotated) == (1, False, len(STARTING_OK))
    before = world.files()
    assert clean(world.out, world.settings, delete=True).files == 0
    assert world.files() == before
    run_id = read_plan(open_storage(world.out), 1).run_id
    summary = resume(world.out, world.settings) if again == "resume" else call()
    assert (summary.version, summary.run_id) == (1, run_id)
    world.check(ok, bad)
    world.check(STARTING_OK, BAD, version=0)


def test_a_new_model_runs_its_heads_without_media_and_without_new_embeddings(bare: World) -> None:
    bare.as_table({"id": "t", "modality": "caption", "caption": "Rain on the roof"})
    bare.annotate(0)
    bare.annotate(1, out=str(bare.folder / "fresh"))
    shutil.rmtree(bare.media)
    embeddings, quarantine = bare.embeddings(), open_annotation(bare.out).files("quarantined")
    summary = bare.update(1)
    assert work(summary) == {"heads": len(STARTING_OK) + 1}
    assert summary.changes == {"unchanged": 13, "new": 0, "changed": 0, "removed": 0}
    bare.check(STARTING_OK | {"t"}, BAD)
    assert bare.embeddings() == embeddings
    assert open_annotation(bare.out).files("quarantined") == quarantine
    mine, fresh = bare.rows(), bare.rows(out=str(bare.folder / "fresh"))
    close(mine, fresh)
    for name in ("mood", "caption", "item_digest", "sha256", "uri", "duration_s", "model_digest", "model_name"):
        assert mine[name].equals(fresh[name]), name
    old = bare.rows(version=0)
    assert not mine["valence"].equals(old["valence"])
    assert len(next(row for row in mine.to_pylist() if row["id"] == "m0.wav")["windows"]) > 2


def test_a_new_model_and_changed_items_at_once(bare: World) -> None:
    bare.text("bad2.png")
    bare.annotate(0)
    ok = changed_media(bare)
    (bare.media / "bad2.png").unlink()  # the other quarantined row is copied
    summary = bare.update(1)
    assert work(summary) == {"media": 2, "heads": 9, "carried": 1}
    bare.check(ok, BAD)
    bare.annotate(1, out=str(bare.folder / "fresh"))
    close(bare.rows(), bare.rows(out=str(bare.folder / "fresh")))
    assert (
        bare.quarantine()
        .drop_columns("shard")
        .equals(
            open_annotation(bare.out, version=0)
            .table(status="quarantined")
            .sort_by("id")
            .slice(0, 1)
            .drop_columns("shard")
        )
    )
    bare.check(STARTING_OK, {"bad.png", "bad2.png"}, version=0)


def test_quarantined_rows_stay_where_they_are(world: World) -> None:
    quarantine = open_annotation(world.out).files("quarantined")
    changed_media(world)
    world.update()
    assert open_annotation(world.out).files("quarantined") == quarantine


def test_captions_in_the_catalog_are_kept_by_copies(bare: World) -> None:
    texts = {f"t{number}": f"Rain, number {number}" for number in range(3)}
    rows = [{"id": name, "modality": "caption", "caption": text} for name, text in texts.items()]
    bare.as_table(*rows)
    bare.annotate()
    rows[0]["caption"] = texts["t0"] = "Snow"
    bare.as_table(*rows)
    assert bare.update().changes == {"unchanged": 14, "new": 0, "changed": 1, "removed": 0}
    bare.check(STARTING_OK | set(texts), BAD)
    found = {row["id"]: row["caption"] for row in bare.rows(["id", "caption"]).to_pylist()}
    assert found == dict.fromkeys(STARTING_OK) | texts


@pytest.mark.parametrize("old_first", [True, False])
def test_of_rows_with_one_id_the_first_counts(bare: World, old_first: bool) -> None:
    bare.as_table()
    bare.annotate()
    rows = pq.read_table(bare.catalog).to_pylist()
    old = next(row for row in rows if row["id"] == "i2.png")
    (bare.media / "copy.png").write_bytes((bare.media / "i2.png").read_bytes())
    new = old | {"uri": str(bare.media / "copy.png")}
    pair = [old, new] if old_first else [new, old]
    bare.write_table([*(row for row in rows if row["id"] not in {"i2.png", "i3.png"}), *pair])
    summary = bare.update()
    assert summary.changes == {
        "unchanged": 10 + old_first, "new": 0, "changed": 1 - old_first, "removed": 1,
    }  # fmt: skip
    assert summary.duplicates == 1
    bare.check(STARTING_OK - {"i3.png"}, BAD)
    assert bare.update().version == 1


@pytest.mark.parametrize(
    "change", [{"uri": "/m/x"}, {"modality": "video"}, {"caption": "c"}, {"bytes": 8}, {"etag": "f"}]
)
def test_an_item_is_changed_if_any_value_of_its_row_is(tmp_path: Path, change: dict[str, Any]) -> None:
    storage = open_storage(tmp_path / "va")
    finish(storage)
    before, rows = open_annotation(storage), catalog_of(["i03", "i00", "i39", "i40"]).to_pylist()
    found = Lookup(before)(table_of([rows[0] | change, *rows[1:]])).to_pylist()
    assert [(row["base_file"], row["base_row"]) for row in (found[0], found[3])] == [(None, CHANGED), (None, None)]
    for row, kind in ((found[1], "quarantined"), (found[2], "ok")):
        (file,) = [file for file in before.files(kind) if file.path == row["base_file"]]
        assert before.read(file, ["id"])["id"][row["base_row"]].as_py() == row["id"]


def test_items_of_an_unknown_modality_are_quarantined_once(bare: World) -> None:
    odd = [
        {"id": f"odd-{number}", "uri": "/x", "modality": name} for number, name in enumerate(("../x y", "hologram%20"))
    ]
    bare.as_table(*odd, {"id": "none", "uri": "/m/x.bin"})
    bare.annotate()
    bad = BAD | {"odd-0", "odd-1", "none"}
    bare.check(STARTING_OK, bad)
    assert bare.quarantine()["modality"].to_pylist() == ["image", None, "../x y", "hologram%20"]
    assert bare.update().version == 0
    assert work(bare.update(1)) == {"heads": len(STARTING_OK)}
    bare.check(STARTING_OK, bad)


def test_a_catalog_of_other_items_is_refused(world: World) -> None:
    world.write_table([{"id": "elsewhere", "uri": str(world.media / "i1.png"), "modality": "image"}])
    before = world.files()
    with pytest.raises(UsageError, match=r"no item of .*catalog\.parquet is in it; annotate that catalog to another"):
        world.update(catalog=world.catalog)
    assert world.files() == before


@pytest.mark.slow  # exports a network
def test_media_are_read_again_for_another_backbone_only_when_asked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmva_platform.annotation.run.prepare.Workers.have_gpus", lambda _self: False)
    monkeypatch.setattr(
        "mmva_platform.annotation.run.prepare.Workers.calibrate", lambda _self, *values: calibrate_bundle(*values)
    )
    before = world.files()
    with pytest.raises(UsageError, match=r"another backbone for image, .* 7 items .* about .* of one worker; --reread"):
        world.update(2)
    assert {path: world.files()[path] for path in before} == before
    world.check(STARTING_OK, BAD)
    summary = world.update(2, reread=True)
    assert work(summary) == {"media": 6, "quarantined": 1, "heads": 5}
    world.check(STARTING_OK, BAD)
    chosen = read_plan(open_storage(world.out), 1).engines["image"].name
    world.annotate(2, out=str(world.folder / "fresh"), engine=chosen)
    mine, fresh = world.rows(["id", "modality", "valence", "arousal"]), world.rows(out=str(world.folder / "fresh"))
    for row, other in zip(mine.to_pylist(), fresh.to_pylist(), strict=True):
        if row["modality"] == "image":
            assert (row["valence"], row["arousal"]) == pytest.approx((other["valence"], other["arousal"]), abs=1e-5)


def test_a_preview_counts_as_the_update_does_and_writes_nothing(world: World) -> None:
    before = world.files()
    assert "nothing has changed" in preview_update(world.out, world.settings).to_text()
    changed_media(world)
    found = preview_update(world.out, world.settings)
    assert (found.version, found.media, found.copied) == (1, {"image": 1, "caption": 1}, 8)
    assert (found.refused, found.engines) == ("", dict.fromkeys(("image", "music", "caption"), "torch"))
    other = preview_update(world.out, world.settings, engine="onnx")
    assert "engine onnx is not the one that embedded caption, image, music, so that 10 items must be" in other.to_text()
    assert (other.copied, other.media) == (0, {"image": 7, "music": 1, "caption": 4})
    assert world.files() == before
    summary = world.update()
    assert (summary.changes, work(summary)) == (found.changes, {"media": 2, "carried": found.copied})
    assert summary.changes == {"unchanged": 10, "new": 1, "changed": 1, "removed": 1}


def test_another_engine_means_that_media_are_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmva_platform.annotation.run.prepare.Workers.have_gpus", lambda _workers: True)
    assert world.update(engine="torch").shards == 0, "the engine of the version before"
    changed_media(world)
    said = r"engine cuda is not the one that embedded caption, image, music, so that 10 items must be read .*--reread"
    with pytest.raises(UsageError, match=said):
        world.update(engine="cuda")
    killed(
        monkeypatch, "mmva_platform.annotation.run.runner.carry_out", lambda: world.update(engine="cuda", reread=True)
    )
    storage = open_storage(world.out)
    plan = read_plan(storage, 1)
    assert {engine.name for engine in plan.engines.values()} == {"cuda"}
    assert (plan.base and plan.base.kept, sum(plan.rows)) == (0, 12)
    assert not any(items["base_file"].is_valid()[0].as_py() for items in iter_items(storage, plan))


def test_another_request_is_told_what_is_under_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    changed_media(world)
    killed(monkeypatch, "mmva_platform.annotation.run.runner.run_pass", world.update)
    storage = open_storage(world.out)
    shutil.copytree(world.media, world.folder / "elsewhere")
    for call in (
        lambda: world.update(1),
        lambda: world.update(catalog=str(world.folder / "elsewhere")),
        lambda: world.update(engine="cuda"),
        world.retry,
    ):
        with pytest.raises(CheckFailed, match=r"version 1 is under way: update of .*media with model-0") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
    killed_run = read_plan(storage, 1).run_id
    assert world.update().run_id == killed_run


@pytest.mark.parametrize("other", ["update", "new model", "retry"])
def test_of_two_drivers_that_plan_at_once_the_first_plan_counts(
    world: World, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    module = sys.modules["mmva_platform.annotation.run.update"]  # the package has a function of this name
    ok = changed_media(world)
    calls: dict[str, Callable[[], AnnotationSummary]] = {
        "update": world.update, "new model": lambda: world.update(1), "retry": world.retry,
    }  # fmt: skip
    won: list[AnnotationSummary] = []

    def slow(*args: Any, **options: Any) -> Any:
        """Another driver plans and finishes the version while this one reads the catalog."""
        with monkeypatch.context() as inner:
            inner.setattr(module, "write_plan", write_plan)
            won.append(calls[other]())
        return write_plan(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_plan", slow)
        if other == "update":
            assert world.update().run_id == won[0].run_id
        else:
            with pytest.raises(CheckFailed, match="version 1 is under way") as caught:
                world.update()
            assert len(str(caught.value).splitlines()) == 1
    assert (won[0].version, read_record(open_storage(world.out), 1).run_id) == (1, won[0].run_id)
    world.check(STARTING_OK if other == "retry" else ok, BAD)


def test_a_table_that_another_program_wrote_to_is_not_updated(bare: World) -> None:
    bare.annotate(shard_items=1)
    DeltaTable(bare.out).optimize.compact()
    changed_media(bare)
    before = bare.files()
    for call in (bare.update, bare.retry, lambda: resume(bare.out, bare.settings)):
        with pytest.raises(CheckFailed, match=r"another program wrote version 1 of .*; `mmva annotations restore`"):
            call()
    assert bare.files() == before
    bare.check(STARTING_OK, BAD, version=0)
    assert restore(bare.out, bare.settings).version == 2
    bare.check(STARTING_OK, BAD)
    summary = bare.update()
    assert (summary.version, summary.changes) == (3, {"unchanged": 10, "new": 1, "changed": 1, "removed": 1})
    assert bare.retry().version == 4


def test_what_is_not_published_cannot_be_updated(bare: World, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(monkeypatch, "mmva_platform.annotation.run.runner.publish", bare.annotate)
    for call in (bare.update, bare.retry):
        with pytest.raises(UsageError, match="no published annotations"):
            call()
    bare.annotate()
    assert bare.retry().version == 1


def test_media_are_read_again_where_the_decoders_have_changed_and_texts_are_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("mmva.inference.config", "mmva_platform.annotation.run.runner"):
        monkeypatch.setattr(f"{module}.DECODERS", DECODERS + 1)
    with pytest.raises(
        UsageError, match=r"this release decodes image, music differently, so that 8 items must be read again"
    ):
        world.update()
    assert work(world.update(reread=True))["media"] == len(PICTURES) + 1
    caption_files = {file.path for file in open_annotation(world.out).all_files if file.modality == "caption"}
    assert caption_files <= kept_files(world, 1)
    assert work(world.update()) == {}


def test_a_run_that_another_release_began_is_not_finished_with_other_decoders(
    bare: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(monkeypatch, "mmva_platform.annotation.run.runner.publish", bare.annotate)
    monkeypatch.setattr("mmva_platform.annotation.run.runner.DECODERS", DECODERS + 1)
    with pytest.raises(CheckFailed, match=r"begun by a release that decodes media differently"):
        resume(bare.out, bare.settings)


def test_how_tables_are_read_is_part_of_the_plan_and_an_update_reads_them_alike(bare: World) -> None:
    table = bare.folder / "catalog.csv"
    table.write_text("id;caption\n1;a slow piano\n2;a fast drum;more\n")
    bare.catalog = str(table)
    tables = {"lenient": True, "delimiter": ";"}
    bare.annotate(tables=tables)
    assert {row["id"] for row in bare.rows().to_pylist()} == {"1"}
    with pytest.raises(CheckFailed, match=r"lenient: True there, False now"):
        bare.annotate(tables={"delimiter": ";"})
    table.write_text("id;caption\n1;a slow piano\n2;a fast drum;more\n3;a storm\n")
    bare.update()
    assert {row["id"] for row in bare.rows().to_pylist()} == {"1", "3"}
    with pytest.raises(UsageError, match=r"line 3"):
        bare.update(tables={"delimiter": ";"})

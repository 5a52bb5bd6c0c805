"""`clean` shows, and deletes on request, exactly what no kept version needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation import clean, history, open_annotation
from mmva_platform.annotation.table.reader import Annotation
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage

from ....helpers.committed import finish
from ....helpers.versions import BAD, STARTING_OK, World, killed

OK = (STARTING_OK | {"new.png"}) - {"i0.png"}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.made(monkeypatch, tmp_path_factory, three_versions)


def three_versions(world: World) -> None:
    """The first, one of changed items, and one of another model's heads."""
    world.annotate()
    world.picture("new.png")
    world.text("c1.txt")
    (world.media / "i0.png").unlink()
    world.update()
    world.update(1)


def needed(world: World, *versions: int) -> set[str]:
    """Data files and embeddings that versions refer to."""
    found: set[str] = set()
    for version in versions:
        annotation = open_annotation(world.out, version=version)
        found |= {file.path for file in annotation.all_files}
        found |= set(annotation.table(["embedding_file"])["embedding_file"].to_pylist())
    return found


def data_of(world: World) -> set[str]:
    """Data files and embeddings that are there."""
    return {path for path in world.files("*.parquet") if path.startswith("status=") or "/embeddings/" in path}


def test_what_would_be_deleted_is_shown_and_nothing_is_deleted(world: World) -> None:
    before = world.files()
    found = clean(world.out, world.settings)
    unneeded = data_of(world) - needed(world, 2)
    assert unneeded
    size = sum((Path(world.out) / path).stat().st_size for path in unneeded)
    assert (found.files, found.size, found.kept, found.lost) == (len(unneeded), size, (2,), (0, 1))
    assert not found.deleted
    assert "--delete removes" in found.to_text()
    assert world.files() == before


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_exactly_what_no_kept_version_needs_is_deleted(world: World, keep: int) -> None:
    kept = [2, 1, 0][:keep]
    stay, before = needed(world, *kept), world.files()
    shown = clean(world.out, world.settings, keep=keep)
    found = clean(world.out, world.settings, keep=keep, delete=True)
    assert (shown.files, shown.size, found.deleted) == (found.files, found.size, True)
    assert data_of(world) == stay
    others = {path for path in before if not path.startswith("status=") and "/embeddings/" not in path}
    marks = {f"_mmva/{version:06d}/cleaned" for version in range(3) if version not in kept}
    assert set(world.files()) == stay | others | marks
    world.check(OK, BAD)
    for version in set(kept) - {2}:
        world.check(OK if version else STARTING_OK, BAD, version)
    for version in {0, 1, 2} - set(kept):
        with pytest.raises(UsageError, match=f"version {version} was cleaned") as caught:
            open_annotation(world.out, version=version)
        assert len(str(caught.value).splitlines()) == 1
    assert len(history(world.out, world.settings).versions) == 3
    again = clean(world.out, world.settings, keep=keep, delete=True)
    assert (again.files, again.kept, again.lost) == (0, tuple(sorted(kept)), ())


def test_embeddings_that_several_versions_share_stay(world: World) -> None:
    shared = {path for path in needed(world, 0) & needed(world, 2) if "/embeddings/" in path}
    assert shared
    clean(world.out, world.settings, delete=True)
    assert shared <= data_of(world)
    assert world.rows(["id", "embedding"]).num_rows == len(OK)


def test_a_version_under_way_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.picture("i1.png")
    killed(monkeypatch, "mmva_platform.annotation.run.runner.publish", world.update)
    mine = {path for path in data_of(world) if "/000003" in path}
    assert len(mine) > 1
    clean(world.out, world.settings, delete=True)
    assert mine <= data_of(world)
    world.update()
    world.check(OK, BAD)


def test_attempts_that_did_not_count_are_deleted_and_files_of_others_are_not(world: World) -> None:
    root = Path(world.out)
    folder = root / "status=ok" / "modality=image"
    attempt, other = folder / f"000002-000000-{'a' * 64}.parquet", folder / "part-00000-of-spark.parquet"
    for path in (attempt, other):
        path.write_bytes(b"PAR1")
    clean(world.out, world.settings, delete=True)
    assert (attempt.exists(), other.exists()) == (False, True)


def test_a_deletion_that_was_cut_short_is_finished_by_the_next_call(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stay = needed(world, 2)
    with monkeypatch.context() as patch:
        patch.setattr("mmva_platform.storage.local.LocalStorage.delete", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            clean(world.out, world.settings, delete=True)
    with pytest.raises(UsageError, match="version 0 was cleaned"):
        open_annotation(world.out, version=0)
    clean(world.out, world.settings, delete=True)
    assert data_of(world) == stay


def test_nothing_is_deleted_when_a_kept_version_cannot_be_read(world: World) -> None:
    (Path(world.out) / open_annotation(world.out).files()[0].path).write_bytes(b"damaged")
    before = world.files()
    with pytest.raises(CheckFailed, match="damaged"):
        clean(world.out, world.settings, delete=True)
    assert world.files() == before


def test_a_reader_of_a_version_that_is_cleaned_meanwhile_is_told_so(world: World) -> None:
    early: Annotation = open_annotation(world.out, version=0)
    clean(world.out, world.settings, delete=True)
    with pytest.raises(CheckFailed, match="is missing; `clean` may have removed its version"):
        early.table(["id"])


def test_at_least_one_version_is_kept_and_something_must_be_published(storage: Storage, settings: Settings) -> None:
    with pytest.raises(UsageError, match="nothing to clean"):
        clean(storage.uri, settings)
    finish(storage)
    with pytest.raises(UsageError, match="keep must be at least 1"):
        clean(storage.uri, settings, keep=0)
    assert clean(storage.uri, settings, delete=True).files == 0
    assert open_annotation(storage).count() == 35

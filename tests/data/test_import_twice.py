"""Two imports into one place: one dataset is published and stays intact, whatever the other one does and when."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inline_pass import InlineCluster

from mmva.errors import EnvironmentFault, UsageError
from mmva_platform.datasets.checking import check_dataset
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.importing import run as importing
from mmva_platform.datasets.importing.run import import_dataset
from mmva_platform.datasets.schema import DATASET_FILE
from mmva_platform.storage.local import LocalStorage


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def once(action: Callable[[], object]) -> Callable[..., None]:
    """A callback that acts at its first call only: the action makes calls of its own."""
    waiting = [action]

    def call(*_: object) -> None:
        if waiting:
            waiting.pop()()

    return call


def files_of(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def assert_only_the_published_files(out: Path) -> None:
    dataset = Dataset.open(str(out))
    assert set(files_of(out)) == {DATASET_FILE, *dataset.info.files}
    report = check_dataset(str(out))
    assert (report.ok, report.warnings) == (True, ())


@pytest.mark.parametrize("seed", [0, 5], ids=["the same input", "another split"])
def test_the_import_that_finishes_second_fails_and_leaves_the_other_intact(
    published: Any, out: Path, inline_cluster: InlineCluster, seed: int
) -> None:
    """The second one has nothing written yet when the first one publishes: all its writes come after that."""
    inline_cluster.before_shard = once(lambda: import_dataset(published.config(seed=5, shard_rows=4), str(out)))
    with pytest.raises(UsageError, match="another import finished there first; choose another --out") as error:
        import_dataset(published.config(seed=seed, shard_rows=4), str(out))
    assert "\n" not in str(error.value)
    assert_only_the_published_files(out)


def test_an_import_whose_files_the_winner_removed_says_that_it_lost(
    published: Any, out: Path, inline_cluster: InlineCluster
) -> None:
    """Both write the same shards before they amend them; the winner removes those that it superseded."""
    first_pass_done = 0

    def before_shard(_name: str) -> None:
        nonlocal first_pass_done
        if inline_cluster.stages[-1] == "import: amend shards" and not first_pass_done:
            first_pass_done = 1
            import_dataset(published.config(shard_rows=4), str(out))

    inline_cluster.before_shard = before_shard
    with pytest.raises(UsageError, match="another import finished there first"):
        import_dataset(published.config(shard_rows=4), str(out))
    assert first_pass_done
    assert_only_the_published_files(out)


def test_the_report_and_the_labels_stay_those_of_the_winner(
    published: Any, out: Path, monkeypatch: pytest.MonkeyPatch, inline_cluster: InlineCluster
) -> None:
    """Both are about to write dataset.json: the loser has written its labels and its report before."""
    winner: dict[str, bytes] = {}
    real = LocalStorage.put_if_absent

    def import_first() -> None:
        import_dataset(published.config(seed=5), str(out))
        winner.update({name: (out / name).read_bytes() for name in Dataset.open(str(out)).info.files})

    interrupt = once(import_first)

    def put_if_absent(self: LocalStorage, path: str, data: bytes) -> bool:
        if path == DATASET_FILE:
            interrupt()
        return real(self, path, data)

    monkeypatch.setattr(LocalStorage, "put_if_absent", put_if_absent)
    with pytest.raises(UsageError, match="another import finished there first"):
        import_dataset(published.config(), str(out))
    assert inline_cluster.stages
    assert winner
    assert_only_the_published_files(out)
    assert {name: (out / name).read_bytes() for name in winner} == winner


@pytest.mark.usefixtures("inline_cluster")
def test_superseded_shards_stay_until_the_dataset_is_published(
    published: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another import may still need them, and nobody knows yet which of the two will be published."""
    before: set[str] = set()
    real = LocalStorage.put_if_absent

    def put_if_absent(self: LocalStorage, path: str, data: bytes) -> bool:
        before.update(files_of(out))
        return real(self, path, data)

    monkeypatch.setattr(LocalStorage, "put_if_absent", put_if_absent)
    import_dataset(published.config(shard_rows=2), str(out))
    assert before > Dataset.open(str(out)).info.files, "with the superseded ones"
    assert_only_the_published_files(out)


def test_shards_that_only_the_workers_see_are_not_published(
    published: Any, out: Path, inline_cluster: InlineCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a local --out on a cluster of several nodes."""
    monkeypatch.setattr(importing, "amend_shards", elsewhere(importing.amend_shards, out))
    with pytest.raises(EnvironmentFault, match="every node must see the same folder"):
        import_dataset(published.config(), str(out))
    assert inline_cluster.stages
    assert not (out / DATASET_FILE).exists()


def elsewhere(call: Callable[..., Any], out: Path) -> Callable[..., Any]:
    """The call, after which what was written is gone from here."""

    def lost(*args: Any) -> Any:
        result = call(*args)
        shutil.rmtree(out / "shards")
        return result

    return lost

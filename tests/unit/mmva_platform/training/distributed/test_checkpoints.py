"""Checkpoints in storage: what is whole is read, what is damaged costs the steps since the one before."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem
from ray.train import Checkpoint

from mmva.errors import CheckFailed
from mmva_platform.training.distributed.checkpoints import (
    checkpoint_folders,
    checkpoint_name,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

FILES = LocalFileSystem()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The end of an epoch, and the middle of the next."""
    for epoch, done in ((2, 0), (1, 4), (2, 11)):
        name = checkpoint_name({"epoch": epoch, "done": done})
        write_checkpoint(Checkpoint(str(tmp_path / name), FILES), {"at": torch.tensor([epoch, done])})
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "checkpoint_of_something_else").mkdir()
    return tmp_path


def newest(run: Path) -> tuple[Path, list[int]]:
    found = newest_checkpoint(FILES, str(run))
    assert found is not None
    return Path(found[0]), found[1]["at"].tolist()


def test_the_newest_is_the_furthest(run: Path) -> None:
    assert len(checkpoint_folders(FILES, str(run))) == 3
    assert newest(run)[1] == [2, 11]


@pytest.mark.parametrize("harm", ["bit", "cut", "empty", "no digest", "no state"])
def test_a_damaged_one_falls_back_to_the_one_before_and_says_so(
    run: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = newest(run)
    state = folder / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "no digest":  # the process was killed before it wrote it
        (folder / "SHA256SUMS").unlink()
    elif harm == "no state":
        state.unlink()
    else:
        state.write_bytes({"bit": bytes(data), "cut": bytes(data[:-100]), "empty": b""}[harm])
    with caplog.at_level(logging.WARNING):
        assert newest(run)[1] == [2, 0]
    assert folder.name in caplog.text
    assert "using the one before it" in caplog.text


def test_without_a_whole_one_the_run_begins_anew(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in checkpoint_folders(FILES, str(run)):
        (Path(folder) / "state.pt").write_bytes(b"PK\x03\x04 half a file")
    assert newest_checkpoint(FILES, str(run)) is None
    assert "all 3 are damaged" in caplog.text


def test_nothing_in_a_checkpoint_runs(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "touched",))

    folder = str(tmp_path / checkpoint_name({"epoch": 0, "done": 1}))
    write_checkpoint(Checkpoint(folder, FILES), {"model": Harmful()})
    with pytest.raises(CheckFailed, match="cannot be loaded"):
        read_checkpoint(FILES, folder)
    assert not (tmp_path / "touched").exists()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(FILES, str(tmp_path / "none")) is None

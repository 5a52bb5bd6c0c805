"""Checkpoints in storage: what stays, and what a damaged one costs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mmva.errors import CheckFailed
from mmva_platform.storage import open_storage
from mmva_platform.training.checkpoints import Checkpoints


def bytes_of(**values: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def history(*metrics: float) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "val_total": value} for epoch, value in enumerate(metrics)]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """Two epochs and the middle of a third; the first epoch was the best."""
    made = Checkpoints(open_storage(tmp_path), keep=1, metric="val_total")
    rows = history(0.1, 0.3)
    made.save(bytes_of(at=1), epoch=0, done=3, history=[])
    made.save(bytes_of(at=2), epoch=1, done=0, history=rows[:1])
    made.save(bytes_of(at=3), epoch=1, done=4, history=rows[:1])
    made.save(bytes_of(at=4), epoch=2, done=0, history=rows)
    made.save(bytes_of(at=5), epoch=2, done=2, history=rows)
    return made


def damage(checkpoints: Checkpoints, index: int) -> str:
    saved = checkpoints.saved()[index]
    path = checkpoints.storage.local_path(saved.name)
    assert path is not None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    return saved.name


def test_the_last_two_and_the_best_stay(checkpoints: Checkpoints) -> None:
    assert [(saved.epoch, saved.done) for saved in checkpoints.saved()] == [(1, 0), (2, 0), (2, 2)]
    latest = checkpoints.latest()
    assert latest is not None
    assert latest[1] == {"at": 5}
    assert checkpoints.best(history(0.1, 0.3)) == {"at": 2}


def test_a_damaged_one_falls_back_to_the_one_before_and_says_so(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    name = damage(checkpoints, -1)
    with caplog.at_level(logging.WARNING):
        latest = checkpoints.latest()
    assert latest is not None
    assert (latest[0].epoch, latest[0].done, latest[1]) == (2, 0, {"at": 4})
    assert name in caplog.text
    assert "is damaged" in caplog.text
    assert "going back to the one before it" in caplog.text


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file"])
def test_a_cut_one_counts_as_damaged(checkpoints: Checkpoints, content: bytes) -> None:
    path = checkpoints.storage.local_path(checkpoints.saved()[-1].name)
    assert path is not None
    path.write_bytes(content)
    latest = checkpoints.latest()
    assert latest is not None
    assert latest[1] == {"at": 4}


def test_without_a_whole_one_the_run_begins_anew_and_has_no_best(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(3):
        damage(checkpoints, index)
    assert checkpoints.latest() is None
    assert "none of the 3 is whole" in caplog.text
    with pytest.raises(CheckFailed, match="no whole checkpoint of a finished epoch"):
        checkpoints.best(history(0.1, 0.3))


def test_a_damaged_best_gives_way_to_the_next(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    damage(checkpoints, 0)
    assert checkpoints.best(history(0.1, 0.3)) == {"at": 4}
    assert "taking the next best epoch" in caplog.text


def test_an_epoch_that_diverged_is_never_the_best(checkpoints: Checkpoints) -> None:
    assert checkpoints.best(history(float("nan"), 0.3)) == {"at": 4}


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(open_storage(tmp_path / "none"), keep=1, metric="val_total").latest() is None

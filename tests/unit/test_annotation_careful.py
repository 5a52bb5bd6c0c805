"""Careful mode with a child that dies, hangs and writes noise: exactly the guilty items are given up."""

import os
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from mmva.errors import OperationFailed
from mmva_platform.annotation.annotator import Annotator
from mmva_platform.annotation.careful import annotate_carefully
from mmva_platform.annotation.careful_child import serve
from mmva_platform.annotation.careful_frames import send
from mmva_platform.annotation.commit import ShardResult
from mmva_platform.annotation.worker import Fetcher
from mmva_platform.settings import AnnotationSettings, Settings, StorageSettings
from mmva_platform.storage import StorageUnavailable

from .test_annotation_annotator import PLAN, FakeModel, row, table

CHILD = """
import sys
sys.path.insert(0, {here!r})
from tests.unit import test_annotation_careful
test_annotation_careful.child(sys.argv[1:])
"""


class Deadly(FakeModel):
    """Kills its process at one text, hangs at another."""

    def embed(self, modality: str, items: list[str], batch_size: int):
        if "bomb" in items:
            os.kill(os.getpid(), signal.SIGKILL)
        while "tar" in items:
            time.sleep(1)
        return super().embed(modality, items, batch_size)


def child(arguments: list[str]) -> None:
    """What careful.main does, with a model of our own."""
    os.write(1, b"O\0\0\0\0\0\0\0\1noise of a native library")
    items = pa.ipc.open_stream((Path(arguments[0]) / "items.arrow").read_bytes()).read_all()
    with os.fdopen(int(arguments[3]), "wb") as pipe:

        def tell(stage: str) -> None:
            send(pipe, "S", stage.encode())

        annotator = Annotator(Deadly(), PLAN, Fetcher(StorageSettings()), on_progress=tell)  # type: ignore[arg-type]
        send(pipe, "R")
        serve(arguments[1], int(arguments[2]), pipe, annotator, items)


def carefully(texts: list[str], command: list[str], given_up: list[int] | None = None) -> ShardResult:
    rows = [row(f"{number}", "caption", text, uri=None) for number, text in enumerate(texts)]
    settings = Settings(annotation=AnnotationSettings(item_timeout_s=2.0))
    return annotate_carefully(
        "000003", table(rows), plan=PLAN, bundle={}, out="/nowhere", settings=settings, earlier=2, command=command,
        on_given_up=(given_up if given_up is not None else []).append,
    )  # fmt: skip


@pytest.mark.slow
def test_exactly_the_items_that_kill_or_hang_are_given_up() -> None:
    command = [sys.executable, "-c", CHILD.format(here=str(Path(__file__).parents[2]))]
    given_up: list[int] = []
    result = carefully(["calm", "bomb", "gay", "tar", "nan", "sad"], command, given_up)
    assert given_up == [1, 3]
    assert result.ok["id"].to_pylist() == ["0", "2", "5"]
    found = [
        tuple(one[name] for name in ("id", "stage", "error", "attempts")) for one in result.quarantined.to_pylist()
    ]
    assert found == [
        ("1", "infer", "killed-worker", 4),
        ("3", "infer", "timed-out", 3),
        ("4", "infer", "non-finite", 1),
    ]
    assert result.work == {"media": 3, "same bytes": 0, "quarantined": 3}


def test_a_child_that_never_gets_ready_is_nobodys_quarantine() -> None:
    with pytest.raises(OperationFailed, match="shard 000003: the model cannot be loaded apart"):
        carefully(["calm"], [sys.executable, "-c", "raise SystemExit(1)"])


STUCK = """
import os, sys, time
def send(kind, payload=b""):
    os.write(int(sys.argv[4]), kind + len(payload).to_bytes(8, "big") + payload)
send(b"R"); send(b"B", b"0"); send(b"S", b"fetch")
time.sleep(60)
"""


@pytest.mark.slow
def test_storage_that_hangs_is_nobodys_quarantine() -> None:
    with pytest.raises(StorageUnavailable, match="shard 000003: no answer while fetching"):
        carefully(["calm"], [sys.executable, "-c", STUCK])

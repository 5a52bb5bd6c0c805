"""Careful mode: a shard that cost workers before is run item by item in a child process that may die.

The parent writes what the child needs into a folder and reads frames from a pipe of its own: the child's stdout may be
written to by any native library, and cannot corrupt it. A frame is a letter, eight bytes of length, and a payload:
R the model is there; B begins an item (its number); S a step of it (fetch, decode, infer); O its result; A storage is
away. The child dies with its parent: Linux kills it, and elsewhere its stdin closes.
"""

from __future__ import annotations

import ctypes
import io
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import pyarrow as pa

from mmva.errors import MediaError, OperationFailed
from mmva_platform.annotation.commit import ShardResult
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.results import Item, quarantine
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, WINDOW_EMBEDDING_SCHEMA
from mmva_platform.settings import Settings
from mmva_platform.storage import StorageUnavailable

logger = logging.getLogger(__name__)

_DEATHS_ALLOWED: Final = 2
_START_LIMIT_S: Final = 600.0  # to load a model on a machine that may be busy
_TABLES = (("ok", ANNOTATION_SCHEMA), ("quarantined", QUARANTINE_SCHEMA), ("windows", WINDOW_EMBEDDING_SCHEMA))
_PR_SET_PDEATHSIG = 1


class Frame(NamedTuple):
    """A message of the child."""

    kind: str
    payload: bytes


class ChildLostError(Exception):
    """The child died or did not say anything for too long; `hung` tells which."""

    def __init__(self, *, hung: bool) -> None:
        super().__init__("timed out" if hung else "died")
        self.hung = hung


def annotate_carefully(
    shard: str,
    items: pa.Table,
    *,
    plan: Plan,
    bundle: Mapping[str, bytes],
    out: str,
    settings: Settings,
    earlier: int,
    command: Sequence[str] = (sys.executable, "-m", "mmva_platform.annotation.careful"),
) -> ShardResult:
    """Annotate a shard of which nothing is known but that its workers died.

    Args:
        shard: Its name.
        items: Its items.
        plan: The run's plan.
        bundle: The model's files by name.
        out: The run's output.
        settings: Storage, and how long an item may go without a step.
        earlier: Attempts so far, for the quarantine's rows.
        command: What runs the child.

    Raises:
        OperationFailed: If the child cannot even load the model.
        StorageUnavailable: If storage is away.
    """
    results: list[ShardResult] = []
    deaths = 0
    with tempfile.TemporaryDirectory(prefix="mmva-careful-") as folder:
        place = Path(folder)
        _write_arguments(place, items, plan=plan, bundle=bundle, out=out, settings=settings)
        while len(results) < items.num_rows:
            run = _Run(len(results))
            try:
                for result in run.results(command, place, shard, items.num_rows, settings.annotation.item_timeout_s):
                    results.append(result)
                    deaths = 0
            except ChildLostError as lost:
                if not run.ready:
                    raise OperationFailed(
                        f"annotate: shard {shard}: the model cannot be loaded apart ({lost})"
                    ) from lost
                deaths += 1
                name = items["id"][len(results)].as_py()
                logger.warning("shard %s: worker %s at item %s (%s)", shard, lost, name, run.stage)
                if lost.hung or deaths >= _DEATHS_ALLOWED:
                    row = items.slice(len(results), 1)
                    given_up = _given_up(
                        row,
                        lost,
                        plan=plan,
                        shard=shard,
                        stage=run.stage,
                        attempts=earlier + deaths,
                        limit_s=settings.annotation.item_timeout_s,
                    )
                    results.append(given_up)
                    deaths = 0
    return _joined(results)


class _Run:
    """One life of the child, from item `first` on."""

    def __init__(self, first: int) -> None:
        self.first, self.ready, self.stage = first, False, "decode"

    def results(
        self, command: Sequence[str], place: Path, shard: str, count: int, item_timeout_s: float
    ) -> Iterator[ShardResult]:
        with _child([*command, str(place), shard, str(self.first)]) as frames:
            left = count - self.first
            while left:
                frame = frames(item_timeout_s if self.ready else _START_LIMIT_S)
                if frame.kind == "R":
                    self.ready = True
                elif frame.kind == "B":
                    self.stage = "decode"
                elif frame.kind == "S":
                    self.stage = frame.payload.decode()
                elif frame.kind == "A":
                    raise StorageUnavailable(frame.payload.decode())
                else:
                    left -= 1
                    yield _unpack(frame.payload)


@contextmanager
def _child(command: Sequence[str]) -> Iterator[Callable[[float], Frame]]:
    """A child for the length of a block; gives what reads its next frame within some seconds."""
    reader, writer = os.pipe()
    process = None
    try:
        process = subprocess.Popen(  # noqa: S603 - our own module
            [*command, str(writer), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[writer],
        )
        os.close(writer)
        writer = -1
        buffer = bytearray()
        yield lambda timeout_s: _next_frame(reader, buffer, timeout_s)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _next_frame(reader: int, buffer: bytearray, timeout_s: float) -> Frame:
    deadline = time.monotonic() + timeout_s
    while True:
        if len(buffer) >= 9:
            size = int.from_bytes(buffer[1:9], "big")
            if len(buffer) >= 9 + size:
                frame = Frame(chr(buffer[0]), bytes(buffer[9 : 9 + size]))
                del buffer[: 9 + size]
                return frame
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ChildLostError(hung=True)
        data = os.read(reader, 2**16)
        if not data:
            raise ChildLostError(hung=False)
        buffer += data


def _write_arguments(
    place: Path, items: pa.Table, *, plan: Plan, bundle: Mapping[str, bytes], out: str, settings: Settings
) -> None:
    (place / "bundle").mkdir()
    for name, data in bundle.items():
        (place / "bundle" / name).write_bytes(data)
    (place / "plan.json").write_text(plan.model_dump_json())
    (place / "settings.json").write_text(settings.model_dump_json())
    (place / "out").write_text(out)
    (place / "items.arrow").write_bytes(_table_bytes(items))


def _given_up(
    row: pa.Table, lost: ChildLostError, *, plan: Plan, shard: str, stage: str, attempts: int, limit_s: float
) -> ShardResult:
    code = "timed-out" if lost.hung else "killed-worker"
    message = f"no step forward for {limit_s:g} s" if lost.hung else f"its worker died {_DEATHS_ALLOWED} times at it"
    name, uri, modality = (row[column][0].as_py() for column in ("id", "uri", "modality"))
    item = Item(name, uri, modality, error=MediaError(code, message, stage=stage))
    table = quarantine([item], plan, shard)
    column = QUARANTINE_SCHEMA.get_field_index("attempts")
    table = table.set_column(column, QUARANTINE_SCHEMA.field(column), pa.array([attempts], pa.int32()))
    return ShardResult(ANNOTATION_SCHEMA.empty_table(), table, work={"quarantined": 1})


def _joined(results: Sequence[ShardResult]) -> ShardResult:
    work: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for result in results:
        for name, count in result.work.items():
            work[name] = work.get(name, 0) + count
        for name, spent_s in result.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent_s
    ok, quarantined, windows = (
        pa.concat_tables([getattr(result, name) for result in results]).combine_chunks() for name, _ in _TABLES
    )
    return ShardResult(ok, quarantined, windows, work=work, seconds=seconds)


def _table_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def _pack(result: ShardResult) -> bytes:
    parts = [_table_bytes(getattr(result, name)) for name, _ in _TABLES]
    parts.append(json.dumps([dict(result.work), dict(result.seconds)]).encode())
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _unpack(payload: bytes) -> ShardResult:
    parts, rest = [], payload
    while rest:
        size = int.from_bytes(rest[:8], "big")
        parts.append(rest[8 : 8 + size])
        rest = rest[8 + size :]
    *tables, numbers = parts
    work, seconds = json.loads(numbers)
    ok, quarantined, windows = (pa.ipc.open_stream(part).read_all() for part in tables)
    return ShardResult(ok, quarantined, windows, work=work, seconds=seconds)


def serve(shard: str, first: int, pipe: BinaryIO, annotator: Any, items: pa.Table) -> None:
    """The child's work: items one by one from `first` on, every step told to the parent."""
    for number in range(first, items.num_rows):
        send(pipe, "B", str(number).encode())
        try:
            result = annotator.annotate(shard, items.slice(number, 1))
        except StorageUnavailable as error:
            send(pipe, "A", str(error).encode())
            return
        send(pipe, "O", _pack(result))


def send(pipe: BinaryIO, kind: str, payload: bytes = b"") -> None:
    """Write a frame."""
    pipe.write(kind.encode() + len(payload).to_bytes(8, "big") + payload)
    pipe.flush()


def main(arguments: Sequence[str]) -> None:
    """The child: folder, shard, first item, descriptor of the pipe, process id of the parent."""
    from mmva_platform.annotation.annotator import Annotator
    from mmva_platform.annotation.engines import load_model
    from mmva_platform.annotation.worker import Fetcher
    from mmva_platform.storage import open_storage

    place, shard, first = Path(arguments[0]), arguments[1], int(arguments[2])
    _die_with(int(arguments[4]))
    settings = Settings.model_validate_json((place / "settings.json").read_text())
    plan = Plan.model_validate_json((place / "plan.json").read_text())
    storage = open_storage((place / "out").read_text(), settings.storage)
    bundle = {path.name: path.read_bytes() for path in sorted((place / "bundle").iterdir())}
    items = pa.ipc.open_stream((place / "items.arrow").read_bytes()).read_all()
    with open(int(arguments[3]), "wb") as pipe:  # noqa: PTH123 - a descriptor, not a path
        model = load_model(bundle, plan, storage, settings)
        annotator = Annotator(
            model, plan, Fetcher(settings.storage), on_progress=lambda stage: send(pipe, "S", stage.encode())
        )
        send(pipe, "R")
        serve(shard, first, pipe, annotator, items)


def _die_with(parent: int) -> None:
    """End when the parent does, also if it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it went before the request was made
            os._exit(1)
    threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()


def _exit_at_end_of_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

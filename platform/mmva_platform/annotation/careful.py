"""Careful mode: a shard that cost workers before is run item by item in a child process that may die.

A child that died is started again at the same item. An item that it dies at twice, or hangs at once, is given up; all
others are annotated as ever.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyarrow as pa

from mmva.errors import MediaError, OperationFailed
from mmva_platform.annotation.careful_child import write_arguments
from mmva_platform.annotation.careful_frames import TABLES, ChildLostError, FrameReader, unpack
from mmva_platform.annotation.commit import ShardResult
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.results import Item, quarantine
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.settings import Settings
from mmva_platform.storage import StorageUnavailable

logger = logging.getLogger(__name__)

_DEATHS_ALLOWED: Final = 2
_LOADING_LIMIT_S: Final = 300.0  # to start, or to load an encoder, on a machine that may be busy
_CHILD: Final = (sys.executable, "-m", "mmva_platform.annotation.careful_child")


def annotate_carefully(
    shard: str,
    items: pa.Table,
    *,
    plan: Plan,
    bundle: Mapping[str, bytes],
    out: str,
    settings: Settings,
    earlier: int,
    on_given_up: Callable[[int], None] = lambda _number: None,
    command: Sequence[str] = _CHILD,
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
        on_given_up: Told the number of an item that is given up, at once: the whole shard may take long.
        command: What runs the child.

    Raises:
        OperationFailed: If the child cannot even load the model.
        StorageUnavailable: If storage is away.
    """
    results: list[ShardResult] = []
    deaths = 0
    limit_s = settings.annotation.item_timeout_s
    with tempfile.TemporaryDirectory(prefix="mmva-careful-") as folder:
        place = Path(folder)
        write_arguments(place, items, plan=plan, bundle=bundle, out=out, settings=settings)
        while len(results) < items.num_rows:
            number = len(results)
            life = _Life(number, limit_s)
            try:
                for result in life.results([*command, str(place), shard, str(number)], items.num_rows):
                    results.append(result)
                    deaths = 0
            except ChildLostError as lost:
                number = len(results)
                _blame_no_item(life, lost, shard)
                deaths += 1
                logger.warning(
                    "shard %s: worker %s at item %s (%s)", shard, lost, items["id"][number].as_py(), life.stage
                )
                if lost.hung or deaths >= _DEATHS_ALLOWED:
                    error = _verdict(lost, life.stage, limit_s)
                    results.append(_given_up(items.slice(number, 1), error, plan, shard, earlier + deaths))
                    deaths = 0
                    on_given_up(number)
    return _joined(results)


class _Life:
    """One life of the child, from item `first` on."""

    def __init__(self, first: int, item_timeout_s: float) -> None:
        self.first, self.stage = first, "load"
        self._item_timeout_s = item_timeout_s

    def results(self, command: Sequence[str], count: int) -> Iterator[ShardResult]:
        """Results of the items `first` to `count`, as they are made; ChildLostError when the child is gone."""
        with _child(command) as next_frame:
            left = count - self.first
            while left:
                frame = next_frame(_LOADING_LIMIT_S if self.stage == "load" else self._item_timeout_s)
                if frame.kind in "RB":
                    self.stage = "decode"
                elif frame.kind == "S":
                    self.stage = frame.payload.decode()
                elif frame.kind == "A":
                    raise StorageUnavailable(frame.payload.decode())
                else:
                    left -= 1
                    yield unpack(frame.payload)


def _blame_no_item(life: _Life, lost: ChildLostError, shard: str) -> None:
    """Raise for what is no item's fault: a model that cannot be loaded, storage that does not answer."""
    if life.stage == "load":
        raise OperationFailed(f"annotate: shard {shard}: the model cannot be loaded apart (its process {lost})")
    if life.stage == "fetch" and lost.hung:
        raise StorageUnavailable(f"shard {shard}: no answer while fetching")


@contextmanager
def _child(command: Sequence[str]) -> Iterator[FrameReader]:
    """A child for the length of a block; gives what reads its frames."""
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
        yield FrameReader(reader)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def _verdict(lost: ChildLostError, stage: str, limit_s: float) -> MediaError:
    if lost.hung:
        return MediaError("timed-out", f"no step forward for {limit_s:g} s", stage=stage)
    return MediaError("killed-worker", f"its worker died {_DEATHS_ALLOWED} times at it", stage=stage)


def _given_up(row: pa.Table, error: MediaError, plan: Plan, shard: str, attempts: int) -> ShardResult:
    name, uri, modality = (row[column][0].as_py() for column in ("id", "uri", "modality"))
    table = quarantine([Item(name, uri, modality, error=error)], plan, shard)
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
    tables = {name: pa.concat_tables([getattr(one, name) for one in results]).combine_chunks() for name in TABLES}
    return ShardResult(**tables, work=work, seconds=seconds)

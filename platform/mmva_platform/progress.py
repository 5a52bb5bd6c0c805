"""Progress of long work: a bar where a person watches, a log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

LOG_EVERY_S: Final = 5.0


class Advance(Protocol):
    """Tell that n more are done; from the thread that opened the progress."""

    def __call__(self, n: int = 1, /) -> None:
        """Count n more."""


@contextmanager
def progress(label: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """Show progress on standard error for the length of a block.

    Args:
        label: What is being done, such as "embed image".
        total: Number of items.
        console: Where to show it; standard error when None.

    Yields:
        advance(n): call it with the number of items done since the last call.
    """
    console = console or Console(stderr=True)
    with _bar(label, total, console) if console.is_terminal else _lines(label, total) as advance:
        yield advance


@contextmanager
def _bar(label: str, total: int, console: Console) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda n=1: bar.advance(task, n)


@contextmanager
def _lines(label: str, total: int) -> Iterator[Advance]:
    started = told = time.monotonic()
    done = 0

    def advance(n: int = 1) -> None:
        nonlocal done, told
        done += n
        now = time.monotonic()
        if now - told >= LOG_EVERY_S:
            told = now
            logger.info("%s: %d of %d, %.1f/s", label, done, total, done / (now - started))

    yield advance
    logger.info("%s: %d of %d done in %.1f s", label, done, total, time.monotonic() - started)

"""Progress of long work: a bar on a terminal, else a log line every few seconds."""

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
    """Report n more as done; from the thread that opened the progress."""

    def __call__(self, n: int = 1, /) -> None:
        """Count n more."""


@contextmanager
def progress(label: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """Show progress on standard error (or `console`) during a block; yields advance(n), which counts n more as done."""
    console = console or Console(stderr=True)
    with _bar(label, total, console) if console.is_terminal else _lines(label, total) as advance:
        yield advance


@contextmanager
def _bar(label: str, total: int, console: Console) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
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

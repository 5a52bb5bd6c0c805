"""Progress of long work: an early first line, then a bar on a terminal or a log line every few seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

LOG_EVERY_S: Final = 5.0
FIRST_LINE_S: Final = 3.0  # with the start of Python, a command then prints a line within five seconds
_waiting: ContextVar[threading.Timer | None] = ContextVar("mmva_first_line", default=None)


class Advance(Protocol):
    """Counts items as done; to be called from the thread that opened the progress."""

    def __call__(self, n: int = 1, /) -> None:
        """Count n more."""


class _Cancel(logging.Handler):
    """Cancels a timer at the first record of level INFO or above."""

    def __init__(self, timer: threading.Timer) -> None:
        super().__init__(logging.INFO)
        self._timer = timer

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - every record cancels it
        self._timer.cancel()


@contextmanager
def first_line(text: str, after_s: float) -> Iterator[None]:
    """Log `text` once, unless the block ends, logs something or shows a bar within `after_s` seconds."""
    timer = threading.Timer(after_s, logger.info, [text])
    timer.daemon = True
    handler = _Cancel(timer)
    ours = [logging.getLogger(name) for name in ("mmva", "mmva_platform")]
    for log in ours:
        log.addHandler(handler)
    token = _waiting.set(timer)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _waiting.reset(token)
        for log in ours:
            log.removeHandler(handler)


@contextmanager
def progress(label: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """Show progress on standard error (or `console`) during a block; yields advance(n), which counts n more items."""
    from rich.console import Console

    console = console or Console(stderr=True)
    with _bar(label, total, console) if console.is_terminal else _lines(label, total) as advance:
        yield advance


@contextmanager
def _bar(label: str, total: int, console: Console) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if (timer := _waiting.get()) is not None:
        timer.cancel()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda n=1: bar.advance(task, n)


@contextmanager
def _lines(label: str, total: int) -> Iterator[Advance]:
    started = logged = time.monotonic()
    done = 0

    def advance(n: int = 1) -> None:
        nonlocal done, logged
        done += n
        now = time.monotonic()
        if now - logged >= LOG_EVERY_S:
            logged = now
            logger.info("%s: %d of %d, %.1f/s", label, done, total, done / (now - started))

    yield advance
    logger.info("%s: %d of %d done in %.1f s", label, done, total, time.monotonic() - started)

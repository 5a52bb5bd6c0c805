"""Handlers of SIGTERM: finish the running work and stop, or clean up and exit."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from mmva.errors import OperationFailed

logger = logging.getLogger(__name__)
_SHARDS: Final = "asked to stop: finishing the running shards; a second SIGTERM ends at once"


class Stopped(OperationFailed):
    """The work was stopped on request; the message says how to continue."""


@contextmanager
def drain_on_sigterm(answer: str = _SHARDS) -> Iterator[Callable[[], bool]]:
    """Treat SIGTERM as a request to stop during a block, and log the answer; a second one raises SystemExit.

    Enter it after Ray's session, because Ray sets its own handler when it starts. Outside the main thread, where Python
    delivers no signals, nothing changes. Yields stopping(), which is True after the first SIGTERM.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            _exit(number, frame)
        asked.set()
        logger.warning("%s", answer)

    with _handled_by(ask):
        yield asked.is_set


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit during a block, as Ray's own handler does; Python's default skips all cleanup."""
    with _handled_by(_exit):
        yield


def _exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

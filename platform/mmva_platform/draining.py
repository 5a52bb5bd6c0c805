"""SIGTERM as a request: finish the running work, start nothing more."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)


@contextmanager
def drain_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Treat SIGTERM as a request to stop during a block; a second one ends the process at once.

    Enter it after Ray's session, because Ray sets its own handler when it starts. Outside the main thread, where Python
    delivers no signals, nothing changes. Yields stopping(): whether the request has come.
    """
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise SystemExit(128 + signal.SIGTERM)
        asked.set()
        logger.warning("asked to stop: finishing the running shards; a second SIGTERM ends at once")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)

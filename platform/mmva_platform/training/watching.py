"""What the driver does while Ray Train holds it: hand on each epoch's row, and stop when told to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.util.queue import Queue

_POLL_S = 0.2


@contextmanager
def watch(queue: Queue, progress: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call progress(row) for each row that workers put into the queue; the rest of the rows at the end."""
    done = threading.Event()

    def follow() -> None:
        while True:
            last_look = done.wait(_POLL_S)
            for row in queue.get_nowait_batch(queue.qsize()):
                progress(row)
            if last_look:
                return

    follower = threading.Thread(target=follow, name="training-progress", daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        queue.shutdown()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the block as KeyboardInterrupt.

    Ray Train answers SIGINT by aborting the run and exiting with code 0, as if it were done, and leaves its handler
    behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)

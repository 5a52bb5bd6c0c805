"""What the driver does while Ray Train holds it: hand on each epoch's row, and stop when told to.

Ctrl-C aborts at once. SIGTERM, by which schedulers announce that a machine is taken away, asks the workers to save in
the middle of the epoch and end.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.util.queue import Queue

_POLL_S = 0.2


class StopFlag:
    """An actor: set once by the driver, awaited by rank 0 of however many worker groups there come to be."""

    def __init__(self) -> None:
        self._set = asyncio.Event()

    async def wait(self) -> None:
        """Answers once the flag is set."""
        await self._set.wait()

    async def set(self) -> None:
        """Set it."""
        self._set.set()


@contextmanager
def watch(queue: Queue, progress: Callable[[dict[str, Any]], None], flag: Any) -> Iterator[None]:
    """Call progress(row) for each row that workers put into the queue; pass SIGTERM on to the flag."""
    done = threading.Event()
    with terminable() as told_to_stop:

        def follow() -> None:
            passed_on = False
            while True:
                last_look = done.wait(_POLL_S)
                if told_to_stop.is_set() and not passed_on:
                    passed_on = True
                    flag.set.remote()
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
def terminable() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process; never set outside the main thread."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


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

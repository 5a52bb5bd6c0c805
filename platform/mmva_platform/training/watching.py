"""What the driver does while Ray Train holds it: hand on each epoch's row, and stop when told to.

Ctrl-C aborts at once. SIGTERM, by which schedulers announce that a machine is taken away, asks the workers to save in
the middle of the epoch and end.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_POLL_S = 0.2


class Channel:
    """An actor between driver and workers: epochs' rows one way, the word to stop the other way."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._failure: Exception | None = None
        self._stopped = asyncio.Event()

    async def tell(self, row: dict[str, Any]) -> None:
        """Rank 0 has finished an epoch."""
        self._rows.append(row)

    async def take(self) -> list[dict[str, Any]]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows

    async def fail(self, error: Exception) -> None:
        """A worker ends with an error that its message explains."""
        self._failure = error

    async def failure(self) -> Exception | None:
        """The last such error."""
        return self._failure

    async def stop(self) -> None:
        """Ask the workers to save and end."""
        self._stopped.set()

    async def stopped(self) -> None:
        """Answers once they are asked to."""
        await self._stopped.wait()


def open_channel() -> Any:
    """A Channel's handle. It lives on the driver's node: another may be lost while the run goes on."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Channel).remote()


@contextmanager
def watch(channel: Any, progress: Callable[[dict[str, Any]], None]) -> Iterator[list[Exception]]:
    """Call progress(row) for each row that a worker tells of; pass SIGTERM on to the workers.

    Yields a list that holds, once the block has ended, the error that a worker explained, if one did.
    """
    import ray
    from ray.exceptions import RayError

    done = threading.Event()
    failures: list[Exception] = []
    with terminable() as told_to_stop:

        def follow() -> None:
            passed_on = False
            while True:
                last_look = done.wait(_POLL_S)
                if told_to_stop.is_set() and not passed_on:
                    passed_on = True
                    channel.stop.remote()
                try:
                    rows = ray.get(channel.take.remote())
                except RayError:  # Ray is going down; whoever waits for the run hears of it
                    return
                for row in rows:
                    progress(row)
                if last_look:
                    return

        follower = threading.Thread(target=follow, name="training-progress", daemon=True)
        follower.start()
        try:
            yield failures
        finally:
            done.set()
            follower.join()
            with suppress(RayError):
                failures += [error for error in [ray.get(channel.failure.remote())] if error is not None]
                ray.kill(channel)


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

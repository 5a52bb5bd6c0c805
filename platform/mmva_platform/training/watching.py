"""What the driver does while Ray Train holds it: hand on each epoch's row, say what it waits for, stop when told to.

Ctrl-C aborts at once. SIGTERM, by which schedulers announce that a machine is taken away, asks the workers to save in
the middle of the epoch and end. Where there is no room for workers, nobody could answer, and it aborts at once, too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from mmva.errors import OperationFailed
from mmva_platform.training.room import Room

_POLL_S: Final = 0.2
_LOOK_S: Final = 2.0  # how often it is asked whether there is room for the workers


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
def watch(channel: Any, progress: Callable[[dict[str, Any]], None], room: Room) -> Iterator[list[Exception]]:
    """Call progress(row) for each row that a worker tells of; look for room; pass SIGTERM on to the workers.

    Raises:
        OperationFailed: When SIGTERM comes while there is no room for workers.

    Yields a list that holds, once the block has ended, the error that a worker explained, if one did.
    """
    import ray
    from ray.exceptions import RayError

    failures: list[Exception] = []
    with terminable() as told_to_stop:
        follower = _Follower(channel, progress, room, told_to_stop)
        follower.start()
        try:
            yield failures
        except KeyboardInterrupt:
            if not follower.aborted.is_set():
                raise
            raise OperationFailed(
                f"training {room.run}: stopped while it waited for room for its workers; go on with --resume {room.run}"
            ) from None
        finally:
            follower.done.set()
            follower.join()
            with suppress(RayError):
                failures += [error for error in [ray.get(channel.failure.remote())] if error is not None]
                ray.kill(channel)


class _Follower(threading.Thread):
    """Looks after a run from beside the thread that waits for it, until `done` is set and then once more."""

    def __init__(
        self, channel: Any, progress: Callable[[dict[str, Any]], None], room: Room, told_to_stop: threading.Event
    ) -> None:
        super().__init__(name="training-progress", daemon=True)
        self.done, self.aborted = threading.Event(), threading.Event()
        self._channel, self._progress, self._room, self._told_to_stop = channel, progress, room, told_to_stop

    def run(self) -> None:
        """Follow."""
        from ray.exceptions import RayError

        last_look = passed_on = False
        next_look = 0.0
        while not last_look:
            last_look = self.done.wait(_POLL_S)
            if self._told_to_stop.is_set() and not passed_on:
                passed_on = True
                self._channel.stop.remote()
            try:
                if time.monotonic() >= next_look:
                    self._room.look()
                    next_look = time.monotonic() + _LOOK_S
                self._take_rows()
            except RayError:  # Ray is going down; whoever waits for the run hears of it
                return
            if passed_on and self._room.missing and not (last_look or self.aborted.is_set()):
                self.aborted.set()
                last_look = self._press_ctrl_c()

    def _press_ctrl_c(self) -> bool:
        """End the run as Ctrl-C does; whether it has ended. Ray Train answers the third one even while it waits."""
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            if self.done.wait(1.0):
                return True
        return False

    def _take_rows(self) -> None:
        import ray

        for row in ray.get(self._channel.take.remote()):
            self._progress(row)


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

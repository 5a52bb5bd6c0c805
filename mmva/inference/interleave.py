"""Merge several streams into one, optionally with threads, for a consumer that computes on another device."""

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Final, TypeVar

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

_POLL_S: Final = 0.1


def interleaved(
    streams: Iterator[tuple[KeyT, Iterator[ValueT]]], threads: int
) -> Generator[tuple[KeyT, ValueT], None, None]:
    """Yield values of many streams with their keys; each stream keeps its order. Raises a stream's first error.

    With 0 `threads`, the caller's thread reads one stream after another. Otherwise each thread reads one stream at a
    time, the streams mix, and at most two values per thread wait for the consumer.
    """
    if not threads:
        yield from ((key, value) for key, stream in streams for value in stream)
        return
    with closing(_Threads(streams, threads)) as drained:
        yield from drained.values()


class _Threads:
    """Threads that read streams into one queue."""

    def __init__(self, streams: Iterator[tuple[Any, Iterator[Any]]], threads: int) -> None:
        self._streams, self._lock = streams, threading.Lock()
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(2 * threads)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._drain, name="mmva-decode", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def values(self) -> Iterator[tuple[Any, Any]]:
        """Yield the values in the queue until all threads are done."""
        running = len(self._threads)
        while running:
            kind, value = self._queue.get()
            if kind == "error":
                raise value
            if kind == "done":
                running -= 1
            else:
                yield value

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _drain(self) -> None:
        try:
            while (following := self._next()) is not None:
                key, stream = following
                for value in stream:
                    self._put("value", (key, value))
        except Exception as error:  # noqa: BLE001 - raised again by the consumer
            self._put("error", error)
        self._put("done", None)

    def _next(self) -> tuple[Any, Iterator[Any]] | None:
        with self._lock:
            return None if self._stop.is_set() else next(self._streams, None)

    def _put(self, kind: str, value: Any) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put((kind, value), timeout=_POLL_S)
            except queue.Full:
                continue
            return

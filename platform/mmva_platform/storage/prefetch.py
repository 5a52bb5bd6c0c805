"""Fetching ahead: while one item is in work, the bytes of the next ones are on their way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

THREADS: Final = 4
_AHEAD: Final = 8
_AHEAD_BYTES: Final = 64 * 2**20
_UNKNOWN_BYTES: Final = 4 * 2**20  # what a file of unknown size is taken for


class Request(NamedTuple):
    """A file to fetch, its size in bytes if it is known."""

    uri: str
    size: int | None


def prefetched(
    fetch: Callable[[Request], bytes], requests: Iterable[Request], pool: ThreadPoolExecutor
) -> Iterator[Future[bytes]]:
    """The requests' results in order, each as a future; asking for the next one keeps more of them coming.

    At most _AHEAD files and _AHEAD_BYTES are under way or waiting, but always one.
    """
    waiting: deque[tuple[Future[bytes], int]] = deque()
    held = 0
    try:
        for request in requests:
            size = _UNKNOWN_BYTES if request.size is None else request.size
            while waiting and (len(waiting) >= _AHEAD or held + size > _AHEAD_BYTES):
                future, freed = waiting.popleft()
                yield future
                held -= freed
            waiting.append((pool.submit(fetch, request), size))
            held += size
        while waiting:
            yield waiting.popleft()[0]
    finally:  # of a shard that is given up nothing more is fetched, or the next try would queue behind it
        for future, _ in waiting:
            future.cancel()

"""Reading ahead: while one file is processed, the next ones are fetched, within a bound on the bytes held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

THREADS: Final = 32  # requests in flight: a GET takes 15 to 100 ms, and one core infers some 80 images a second
HELD_BYTES: Final = 64 * 2**20


class Request(NamedTuple):
    """A file to fetch, and its size in bytes if it is known."""

    uri: str
    size: int | None


def prefetched(
    fetch: Callable[[Request], bytes],
    requests: Iterable[Request],
    pool: ThreadPoolExecutor,
    *,
    in_flight: int = THREADS,
    held_bytes: int = HELD_BYTES,
) -> Iterator[Future[bytes]]:
    """Yield the results of the requests in order, each as a future.

    At most `in_flight` files and `held_bytes` bytes are fetched or waiting at a time, but always at least one file.
    A finished fetch counts with its real size, one under way with its known size. Without a known size it counts as
    twice the mean of the sizes seen so far, and until the first size is seen as the whole bound.
    """
    waiting: deque[tuple[Future[bytes], Request]] = deque()
    seen = _Sizes()
    try:
        for request in requests:
            while waiting and (
                len(waiting) >= in_flight
                or seen.held(waiting, held_bytes) + seen.expected(request, held_bytes) > held_bytes
            ):
                future, _ = waiting.popleft()
                yield future
                seen.add(future)
                del future
            waiting.append((pool.submit(fetch, request), request))
        while waiting:
            yield waiting.popleft()[0]
    finally:  # the caller stopped early: do not fetch what nobody reads
        for future, _ in waiting:
            future.cancel()


class _Sizes:
    """Sizes of the files fetched so far."""

    def __init__(self) -> None:
        self._count = self._total = 0

    def add(self, future: Future[bytes]) -> None:
        """Note the size of a fetch that worked."""
        if future.done() and not future.cancelled() and future.exception() is None:
            self._count += 1
            self._total += len(future.result())

    def expected(self, request: Request, most: int) -> int:
        """Bytes to reserve for a request that is not finished."""
        if request.size is not None:
            return request.size
        return 2 * self._total // self._count if self._count else most

    def held(self, waiting: Iterable[tuple[Future[bytes], Request]], most: int) -> int:
        """Bytes that the waiting requests hold or will hold."""
        return sum(_size(future) if future.done() else self.expected(request, most) for future, request in waiting)


def _size(future: Future[bytes]) -> int:
    return 0 if future.exception() is not None else len(future.result())

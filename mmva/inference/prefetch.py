"""Reading ahead: while one file is processed, the next ones are fetched, within a bound on the bytes held."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
    A finished fetch counts with its real size, one under way with its known size. Without a known size it counts with
    twice the mean of the sizes seen so far, and with the whole bound until the first size is seen.
    """
    waiting: deque[_Fetch] = deque()
    sizes = _Sizes(held_bytes)
    try:
        for request in requests:
            while waiting and (len(waiting) >= in_flight or sizes.held(waiting) + sizes.reserved(request) > held_bytes):
                first = waiting.popleft()
                yield first.future
                sizes.add(first)
                del first
            waiting.append(_Fetch(pool.submit(fetch, request), request))
        while waiting:
            yield waiting.popleft().future
    finally:  # the caller stopped early
        for one in waiting:
            one.future.cancel()


@dataclass(slots=True)
class _Fetch:
    """A request under way or finished; then with its real size."""

    future: Future[bytes]
    request: Request
    size: int | None = None

    def real_size(self) -> int | None:
        """Bytes that it holds; None while it is under way."""
        if self.size is None and self.future.done():
            failed = self.future.cancelled() or self.future.exception() is not None
            self.size = 0 if failed else len(self.future.result())
        return self.size


class _Sizes:
    """Bytes to reserve for a request, learned from the files fetched so far."""

    def __init__(self, most: int) -> None:
        self._most, self._count, self._total = most, 0, 0

    def add(self, fetch: _Fetch) -> None:
        """Note the size of a fetch that worked."""
        size = fetch.real_size()
        if size:
            self._count += 1
            self._total += size

    def reserved(self, request: Request) -> int:
        """Bytes of a request that is not finished."""
        if request.size is not None:
            return request.size
        return 2 * self._total // self._count if self._count else self._most

    def held(self, waiting: Iterable[_Fetch]) -> int:
        """Bytes that the waiting requests hold or will hold."""
        real = ((one, one.real_size()) for one in waiting)
        return sum(self.reserved(one.request) if size is None else size for one, size in real)

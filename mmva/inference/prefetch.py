"""Reading ahead: while one file is processed, the next ones are fetched, within a bound on the bytes held."""

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
    A finished fetch counts with its real size, a running one with its known size. Without a known size it counts with
    twice the mean of the sizes seen so far, and with the whole bound until the first size is seen.
    """
    waiting: deque[tuple[Future[bytes], Request]] = deque()
    files = total = 0  # fetched so far, and their bytes

    def reserved(request: Request) -> int:
        if request.size is not None:
            return request.size
        return 2 * total // files if files else held_bytes

    def held() -> int:
        sizes = ((_size(future), request) for future, request in waiting)
        return sum(reserved(request) if size is None else size for size, request in sizes)

    try:
        for request in requests:
            while waiting and (len(waiting) >= in_flight or held() + reserved(request) > held_bytes):
                future = waiting.popleft()[0]
                yield future
                if size := _size(future):
                    files, total = files + 1, total + size
                del future  # or its bytes stay in memory
            waiting.append((pool.submit(fetch, request), request))
        while waiting:
            yield waiting.popleft()[0]
    finally:  # the caller stopped early
        for future, _ in waiting:
            future.cancel()


def _size(future: Future[bytes]) -> int | None:
    """Bytes of a finished fetch; None while it runs."""
    if not future.done():
        return None
    return 0 if future.cancelled() or future.exception() is not None else len(future.result())

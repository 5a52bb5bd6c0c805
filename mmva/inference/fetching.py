"""Read items' bytes ahead, retry during outages, and separate errors of the environment from those of items."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from mmva.errors import EnvironmentFault, MediaError
from mmva.inference.causes import described, fetch_error, is_environment_fault

if TYPE_CHECKING:
    from mmva.inference.items import Item

logger = logging.getLogger(__name__)
# (URI, known size or None, most bytes to read) -> bytes; called from several threads.
Fetch = Callable[[str, int | None, int], bytes]
Progress = Callable[[str], None]
_ALL_FAILED: Final = 8  # fetches of a call, all failing for one cause, that show a fault of the environment
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
_REPORT_S: Final = 5.0
THREADS: Final = 32  # requests in flight: a GET takes 15 to 100 ms, and one core embeds about 80 images per second
HELD_BYTES: Final = 64 * 2**20


class Request(NamedTuple):
    """A file to fetch, and its size in bytes if known."""

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

    At most `in_flight` files and `held_bytes` bytes are fetched or waiting at a time, but at least one file. A finished
    fetch counts with its real size, a running one with its known size. A running one of unknown size counts with twice
    the mean size so far, or with `held_bytes` before the first size is known.
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
                del future  # frees its bytes
            waiting.append((pool.submit(fetch, request), request))
        while waiting:
            yield waiting.popleft()[0]
    finally:  # the caller stopped early
        for future, _ in waiting:
            future.cancel()


def _size(future: Future[bytes]) -> int | None:
    """Number of bytes of a finished fetch; None while it runs."""
    if not future.done():
        return None
    return 0 if future.cancelled() or future.exception() is not None else len(future.result())


class Outage:
    """Measures how long storage is unavailable, for all threads of a process. Any answer ends the outage."""

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s, self._clock = patience_s, clock
        self._since: float | None = None
        self._lock = threading.Lock()

    def lasts_too_long(self, error: Exception) -> bool:
        """Note a request without an answer. Returns whether the outage has lasted for patience_s."""
        now = self._clock()
        with self._lock:
            begins = self._since is None
            since = self._since = now if self._since is None else self._since
        if begins:
            logger.warning("storage is unavailable (%s); trying again", error)
        return now - since >= self._patience_s

    def end(self) -> None:
        """Note an answer."""
        with self._lock:
            self._since = None


class Fetching:
    """Reads items' bytes with many requests in flight."""

    def __init__(
        self,
        fetch: Fetch,
        *,
        max_bytes: int,
        is_outage: Callable[[Exception], bool] = lambda _error: False,
        patience_s: float = 0.0,
        threads: int = THREADS,
        on_progress: Progress = lambda _stage: None,
    ) -> None:
        """Set up reading; nothing is read yet.

        If `is_outage` of an error is true, storage does not answer, and the request is retried for up to `patience_s`
        seconds. An error with a true attribute `environment` becomes an EnvironmentFault. `on_progress` is called with
        "fetch" when the caller starts to wait for bytes, and every few seconds while it waits.
        """
        self._fetch, self._max_bytes, self._is_outage = fetch, max_bytes, is_outage
        self._outage, self._on_progress = Outage(patience_s), on_progress
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mmva-fetch")
        self._threads = threads

    def read(self, items: Sequence[Item], *, items_at_fault: bool = False) -> Generator[tuple[Item, bytes], None, None]:
        """Yield items with their bytes, in order. An item that cannot be read gets its error and is skipped.

        Each item has a caption or a URI, and no error. Raises EnvironmentFault if the environment is at fault, or at
        least 8 fetches, and no other, fail for one cause; with `items_at_fault` (the environment is known to work), the
        items get this error instead. Raises the error of an outage that lasts too long.
        """
        requests = [Request(item.uri, item.size) for item in items if item.caption is None and item.uri is not None]
        failed: list[tuple[Item, Exception, MediaError]] = []
        stop = threading.Event()
        futures = prefetched(lambda one: self._read(one, stop), requests, self._pool, in_flight=self._threads)
        try:
            for item in items:
                if item.caption is not None:
                    yield item, item.caption.encode(errors="replace")
                    continue
                future = next(futures)
                try:
                    data = self._result(future)
                except Exception as error:  # an odd URI may raise anything
                    if is_environment_fault(error) and (self._is_outage(error) or not items_at_fault):
                        raise _as_fault(error, item.uri) from error
                    if self._is_outage(error):
                        raise
                    item.error = fetch_error(error)
                    failed.append((item, error, item.error))
                    continue
                finally:
                    del future  # frees its bytes before the item is decoded
                yield item, data
                del data
        finally:
            stop.set()
            futures.close()  # type: ignore[attr-defined] # a generator
        _check_failures(failed, len(requests), items_at_fault=items_at_fault)

    def _result(self, future: Future[bytes]) -> bytes:
        while not future.done():
            self._on_progress("fetch")
            with suppress(TimeoutError):
                future.exception(_REPORT_S)
        return future.result()

    def _read(self, request: Request, stop: threading.Event) -> bytes:
        """Read one file in a thread; retry during an outage, with growing random waits."""
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                data = self._fetch(request.uri, request.size, self._max_bytes)
            except Exception as error:
                if not self._is_outage(error):
                    self._outage.end()
                    raise
                if self._outage.lasts_too_long(error):
                    raise
            else:
                self._outage.end()
                return data
            if stop.wait(random.uniform(wait_s / 2, wait_s)):
                raise CancelledError
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _check_failures(
    failed: Sequence[tuple[Item, Exception, MediaError]], requests: int, *, items_at_fault: bool
) -> None:
    """Raises EnvironmentFault if all fetches failed and the environment is at fault."""
    if not failed or len(failed) < requests:
        return
    item, error, cause = failed[0]
    if all(is_environment_fault(one) for _, one, _ in failed):
        raise _as_fault(error, item.uri) from error
    # A MediaError describes the file (too large, outside the roots), not the environment.
    alike = all(found.code == cause.code and not isinstance(one, MediaError) for _, one, found in failed)
    if alike and len(failed) >= _ALL_FAILED and not items_at_fault:
        raise EnvironmentFault(f"fetch: all {len(failed)} files fail with {cause.code}, first {item.uri}: {cause}")


def _as_fault(error: Exception, uri: str | None) -> EnvironmentFault:
    return error if isinstance(error, EnvironmentFault) else EnvironmentFault(f"fetch: {uri}: {described(error)}")

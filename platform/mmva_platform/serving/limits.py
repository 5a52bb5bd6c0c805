"""Limits of bytes, requests, items, threads and time. Excess work is refused at once, never queued without a bound."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmva_platform.monitoring.metrics import ApiMetrics
from mmva_platform.serving.auth import route_path
from mmva_platform.serving.errors import CLIENT_CLOSED, ApiError, answer_of, busy
from mmva_platform.settings import ServingSettings

Result = TypeVar("Result")

HEALTH: Final = frozenset({"/healthz", "/readyz"})
UPLOAD: Final = "/upload"  # the end of the path of a route that takes a form


class RequestLimits:
    """Middleware: limits type and size of a body, bytes and requests in flight, and time to the answer."""

    def __init__(self, app: ASGIApp, settings: ServingSettings, metrics: ApiMetrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._most = settings.max_body_mb * 2**20
        self._most_bytes = max(settings.max_in_flight_mb, settings.max_body_mb) * 2**20
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request within the limits, or refuse it."""
        if scope["type"] != "http" or route_path(scope) in HEALTH:  # probes are answered even if the server is busy
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        limit_s = self._settings.request_timeout_s
        try:
            # Not wait_for, which before Python 3.12 may lose a cancellation, and with it this limit.
            with self._counted(scope) as size:
                async with asyncio.timeout(limit_s):
                    await self._app(scope, self._bounded(receive, size), watched)
        except TimeoutError:
            error = busy(f"no answer within {limit_s:g} s", 5.0)
        except ApiError as refusal:
            error = refusal
        else:
            return
        if not started:
            await answer_of(error)(scope, receive, send)

    @contextmanager
    def _counted(self, scope: Scope) -> Iterator[int]:
        """Admit a request by its headers; yields the bytes that are reserved for its body."""
        size = self._declared(scope)
        if self._requests >= self._settings.max_in_flight:
            self._metrics.shed.inc(1, {"what": "requests"})
            raise busy("too many requests are in flight")
        if self._bytes and self._bytes + size > self._most_bytes:
            self._metrics.shed.inc(1, {"what": "bytes"})
            raise busy("too many bytes are in flight")
        self._requests, self._bytes = self._requests + 1, self._bytes + size
        try:
            yield size
        finally:
            self._requests, self._bytes = self._requests - 1, self._bytes - size

    def _declared(self, scope: Scope) -> int:
        """Size of the body by the headers; the maximum if they do not say."""
        headers = Headers(scope=scope)
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            accepted = "multipart/form-data" if route_path(scope).endswith(UPLOAD) else "application/json"
            if kind != accepted:
                raise ApiError(415, "unsupported-media-type", f"Content-Type must be {accepted}")
        length = headers.get("content-length")
        if length is None:
            return self._most if "transfer-encoding" in headers else 0
        if not length.isdecimal():
            raise ApiError(400, "bad-request", "Content-Length is not a number")
        if int(length) > self._most:
            raise self._too_large()
        return int(length)

    def _bounded(self, receive: Receive, size: int) -> Receive:
        """`receive` with a limit of bytes, and of time for each piece."""
        received = 0
        ended = False
        most = size or self._most

        async def bounded() -> Message:
            nonlocal received, ended
            if ended:  # only a disconnect can follow
                return await receive()
            try:
                async with asyncio.timeout(self._settings.body_timeout_s):
                    message = await receive()
            except TimeoutError:
                # A 413 keeps the connection open, because a client that still sends would lose the answer.
                headers = {"Connection": "close"}
                raise ApiError(408, "body-timeout", "the body did not arrive in time", headers=headers) from None
            if message["type"] == "http.disconnect":
                raise ApiError(CLIENT_CLOSED, "client-closed", "the client closed the connection")
            received += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if received > most:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ApiError:
        return ApiError(413, "body-too-large", f"the body is larger than {self._settings.max_body_mb} MiB")


class Admission:
    """Limits the items in flight, in total and per key."""

    def __init__(self, settings: ServingSettings, metrics: ApiMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._all = 0
        self._own: Counter[str] = Counter()

    @contextmanager
    def enter(self, caller: str, items: int) -> Iterator[None]:
        """Count items during the block. Raises ApiError 429 or 503 if there are too many."""
        if self._own[caller] and self._own[caller] + items > self._settings.max_in_flight_per_key:
            self._metrics.shed.inc(1, {"what": "key"})
            raise ApiError(429, "too-many-items", "this key has too many items in flight", 1.0)
        if self._all and self._all + items > self._settings.max_in_flight:
            self._metrics.shed.inc(1, {"what": "items"})
            raise busy("too many items are in flight")
        self._count(caller, items)
        try:
            yield
        finally:
            self._count(caller, -items)

    def _count(self, caller: str, items: int) -> None:
        self._all += items
        self._own[caller] += items
        if not self._own[caller]:
            del self._own[caller]
        self._metrics.in_flight.set(self._all)


class Threads:
    """Threads for one kind of blocking work, so that slow storage never delays another kind.

    An abandoned call continues in its thread, and counts until it ends.
    """

    def __init__(self, name: str, threads: int, waiting: int = 32) -> None:
        """Limit the calls that run at once, and those that wait for a thread; more are refused."""
        self._name, self._most = name, threads + waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"mmva-{name}")
        self._pending = 0
        self._lock = threading.Lock()

    async def __call__(self, function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
        """Call a function in a thread. Raises ApiError 503 if too many calls wait."""
        with self._lock:
            if self._pending >= self._most:
                raise busy(f"too many requests wait for {self._name}")
            self._pending += 1
        future = self._pool.submit(function, *arguments, **options)
        future.add_done_callback(self._ended)
        return await asyncio.wrap_future(future)

    def _ended(self, _future: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1

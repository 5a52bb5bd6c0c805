"""The gate before all routes: who is there, how much may be sent, how long it may take. Pure ASGI, so that a request
without a key or with too large a body costs next to nothing: nothing of its body is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.serving.keys import Keyring
from mmva_platform.serving.metrics import Metrics
from mmva_platform.serving.services import ApiError, busy
from mmva_platform.settings import ServingSettings

logger = logging.getLogger(__name__)

# All that answers without a key: health, and the page, which is an empty shell that asks for one.
PUBLIC: Final = frozenset({"/healthz", "/readyz"})
PAGE: Final = frozenset({"/", "/static/{name}"})
UPLOADS: Final = frozenset({"/v1/annotate", "/v1/search", "/v1/music-prompt", "/v1/summarize"})
_FOR_BROWSERS: Final = ("/docs", "/openapi.json", "/metrics")
_BASE_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def is_public(path: str) -> bool:
    """Whether a path answers without a key."""
    return path in PUBLIC or path == "/" or path.startswith("/static/")


class Gate:
    """Wraps the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keyring: Keyring,
        settings: ServingSettings,
        metrics: Metrics,
        model: Callable[[], ModelInfo | None],
    ) -> None:
        self._app, self._keyring, self._settings = app, keyring, settings
        self._metrics, self._model = metrics, model
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or say no."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # lifespan; there are no websocket routes
            return
        begun, status = perf_counter(), 500

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._mark(MutableHeaders(scope=message))
            await send(message)

        try:
            await self._through(scope, receive, marked)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.request(route, scope["method"], status, perf_counter() - begun)

    async def _through(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope)
        except ApiError as error:
            await refuse(error, send)
            return
        if scope["path"] in PUBLIC:  # a probe is answered however busy it is
            await self._app(scope, receive, send)
            return
        if self._open >= self._settings.max_in_flight:
            self._metrics.shed("requests")
            await refuse(busy("too many requests are in work"), send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self._open += 1
        try:
            limit_s = self._settings.request_timeout_s
            await asyncio.wait_for(self._app(scope, self._bounded(receive), watched), limit_s)
        except TimeoutError:
            if started:
                raise
            await refuse(busy(f"no answer within {limit_s:g} s", 5.0), send)
        finally:
            self._open -= 1

    def _admit(self, scope: Scope) -> None:
        """Raise for a request that is refused by its head alone."""
        headers, path = Headers(scope=scope), scope["path"]
        if not is_public(path):
            caller = self._keyring.find(headers.get("authorization", ""), scope["method"])
            if caller is None:
                raise _unauthorized(path)
            scope.setdefault("state", {})["caller"] = caller
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            accepted = ("application/json", *(("multipart/form-data",) if path in UPLOADS else ()))
            if kind not in accepted:
                raise ApiError(415, "unsupported-media-type", f"Content-Type must be {' or '.join(accepted)}")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise ApiError(400, "bad-request", "Content-Length is no number")
        if int(length) > self._most:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` that counts what comes without a Content-Length, and does not wait for ever for the next piece."""
        received = 0
        ended = False

        async def bounded() -> Message:
            nonlocal received, ended
            if ended:  # all there is to come is that the client goes away
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._settings.body_timeout_s)
            except TimeoutError:
                raise ApiError(408, "body-timeout", "the body did not arrive") from None
            received += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if received > self._most:
                raise self._too_large()
            return message

        return bounded

    @property
    def _most(self) -> int:
        return self._settings.max_body_mb * 2**20

    def _too_large(self) -> ApiError:
        return ApiError(413, "body-too-large", f"the body is larger than {self._settings.max_body_mb} MiB")

    def _mark(self, headers: MutableHeaders) -> None:
        for name, value in _BASE_HEADERS.items():
            headers.setdefault(name, value)
        model = self._model()
        if model is not None:
            headers.setdefault("X-MMVA-Model", version_of(model))
            headers.setdefault("X-MMVA-Model-Digest", model.digest)


def version_of(model: ModelInfo) -> str:
    """A model for a header: name/version, or its name alone if it is not registered."""
    name = f"{model.name}/{model.version}" if model.version else model.name
    return name.encode("ascii", "replace").decode()


async def refuse(error: ApiError, send: Send) -> None:
    """Answer with an error."""
    body = json.dumps(error_body(error.code, str(error.detail))).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(error.headers or {})}
    if error.status_code == 408:
        # Not after 413: closed upon a client that still sends, its answer would be lost; the rest is thrown away.
        headers["Connection"] = "close"
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status_code, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def error_body(code: str, message: str, **more: Any) -> dict[str, Any]:
    """The body of every error."""
    return {"error": {"code": code, "message": message, **more}}


def _unauthorized(path: str) -> ApiError:
    error = ApiError(401, "unauthorized", "send a valid key as 'Authorization: Bearer KEY'")
    browser = path.startswith(_FOR_BROWSERS)  # elsewhere a browser's own dialog would come over the page's
    error.headers = {"WWW-Authenticate": 'Basic realm="mmva"' if browser else "Bearer"}
    return error

"""The application without Ray: routes and errors, behind authentication and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.serving.auth import Authentication, refuse_open_routes
from mmva_platform.serving.context import Context
from mmva_platform.serving.errors import HANDLERS
from mmva_platform.serving.limits import RequestLimits
from mmva_platform.serving.routes import ROUTERS
from mmva_platform.serving.routes.operations import PAGE
from mmva_platform.serving.schemas import ErrorOut

if TYPE_CHECKING:
    from mmva_platform.serving.client import ModelClient

_BASE_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_ERRORS: Final = {
    400: "the request is malformed",
    401: "no valid key",
    403: "the key lacks the scope, or the place is outside the allowed roots",
    404: "not found",
    408: "the body did not arrive in time",
    409: "conflicts with the state of a job or an annotation",
    413: "body too large, or too many items",
    415: "this route does not accept the Content-Type",
    422: "a body or parameter is not valid",
    429: "too many items or jobs of this key; see Retry-After",
    503: "busy, or no model is available; see Retry-After",
}


def create_app(context: Context) -> ASGIApp:
    """The application with its middlewares."""
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "model": ErrorOut} for status, text in _ERRORS.items()
    }
    app = FastAPI(title="mmva", description="Valence-arousal points of images, music and captions.", responses=errors,
                  exception_handlers=HANDLERS, openapi_url=None)  # fmt: skip
    app.state.context = context
    refuse_open_routes(ROUTERS)
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", PAGE)
    app.mount("/docs", StaticFiles(packages=[("fastapi_offline", "static")]))  # Swagger UI; needs a key of any scope
    limited = RequestLimits(GZipMiddleware(app, 1024, 4), context.settings.serving, context.metrics)
    return Answering(Authentication(limited, context.keyring), context.models)


class Answering:
    """Middleware: answers HEAD like GET, and adds headers. Only an authorised answer names the model."""

    def __init__(self, app: ASGIApp, models: ModelClient) -> None:
        self._app, self._models = app, models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # lifespan; there are no WebSocket routes
            return
        head = scope["method"] == "HEAD"
        scope = {**scope, "method": "GET"} if head else scope

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._mark(MutableHeaders(scope=message), authorised="caller" in scope.get("state", {}))
            elif head:
                message = {**message, "body": b""}
            await send(message)

        await self._app(scope, receive, marked)

    def _mark(self, headers: MutableHeaders, *, authorised: bool) -> None:
        for name, value in _BASE_HEADERS.items():
            headers.setdefault(name, value)
        model = self._models.known
        if authorised and model is not None:
            headers.setdefault("X-MMVA-Model", _version_of(model))
            headers.setdefault("X-MMVA-Model-Digest", model.digest)


def _version_of(model: ModelInfo) -> str:
    """A model as a header's value: name/version, or only the name if it is not registered."""
    name = f"{model.name}/{model.version}" if model.version else model.name
    return name.encode("ascii", "replace").decode()

"""The application, without Ray: routes, errors, and the gate before them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.serving import items, jobs_routes, operations, search_routes, zeroshot_routes
from mmva_platform.serving.access import Needs
from mmva_platform.serving.explorer_wiring import explorer_of
from mmva_platform.serving.gate import PAGE, PUBLIC, Gate, error_body
from mmva_platform.serving.items import Admission
from mmva_platform.serving.metrics import Metrics
from mmva_platform.serving.openapi import describe
from mmva_platform.serving.progress_of_jobs import ProgressReader
from mmva_platform.serving.schemas import AnnotateIn, PromptIn, SearchIn, SummaryIn
from mmva_platform.serving.services import ApiError, Services
from mmva_platform.serving.uploads import explained

logger = logging.getLogger(__name__)

ROUTERS = (items.router, jobs_routes.router, search_routes.router, zeroshot_routes.router, operations.router)


def create_app(
    services: Services,
    metrics: Metrics,
    known_model: Callable[[], ModelInfo | None],
) -> ASGIApp:
    """The application behind its gate.

    Args:
        services: What routes call.
        metrics: Where they count.
        known_model: The model that answered last, for the headers of every answer.
    """
    app = FastAPI(
        title="mmva",
        description="Valence-arousal points of images, music and captions.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services, app.state.metrics = services, metrics
    app.state.admission = admission = Admission(services.settings.serving, metrics)
    app.state.banks, app.state.scanning = {}, asyncio.Lock()
    app.state.progress = progress = ProgressReader(services.settings.storage)
    app.state.routers = routers = (*ROUTERS, explorer_of(services, admission, progress))
    refuse_open_routes(routers)
    for router in routers:
        app.include_router(router)
    describe(app, [AnnotateIn, PromptIn, SearchIn, SummaryIn])
    _explain_errors(app)
    return Gate(app, keyring=services.keyring, settings=services.settings.serving, metrics=metrics, model=known_model)


def refuse_open_routes(routers: Iterable[APIRouter]) -> None:
    """AssertionError if a route neither names a scope nor is public by name: that would be our mistake."""
    for route in (route for router in routers for route in router.routes):
        assert isinstance(route, APIRoute), f"{route} is no route that could name a scope"
        scoped = any(isinstance(dependency.call, Needs) for dependency in route.dependant.dependencies)
        assert scoped or route.path in PUBLIC | PAGE, f"{route.path} names no scope"


def _explain_errors(app: FastAPI) -> None:
    async def http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = error.code if isinstance(error, ApiError) else _CODES.get(error.status_code, "error")
        return JSONResponse(error_body(code, str(error.detail)), error.status_code, error.headers)

    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse(error_body("invalid", explained(error.errors())), 422)

    async def expected(_request: Request, error: Exception) -> JSONResponse:
        status, code = next(answer for kind, answer in _EXPECTED.items() if isinstance(error, kind))
        headers = {"Retry-After": "10"} if status == 503 else None
        return JSONResponse(error_body(code, _printable(str(error))), status, headers)

    async def bug(_request: Request, error: Exception) -> JSONResponse:
        logger.error("a bug", exc_info=error)
        return JSONResponse(error_body("internal", "an error of the server, see its log"), 500)

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in _EXPECTED:
        app.add_exception_handler(kind, expected)
    app.add_exception_handler(Exception, bug)


# OperationFailed before UsageError: storage's path errors are both, and then the caller's mistake counts.
_EXPECTED: dict[type[Exception], tuple[int, str]] = {
    UsageError: (400, "wrong-usage"),
    CheckFailed: (409, "check-failed"),
    OperationFailed: (503, "unavailable"),
}
_CODES = {404: "not-found", 405: "method-not-allowed", 400: "bad-request", 413: "body-too-large"}


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()

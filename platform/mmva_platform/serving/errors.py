"""Errors of the API: a stable code to program against, and one line for a person."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Send

from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError

logger = logging.getLogger(__name__)

CLIENT_CLOSED: Final = 499  # nginx's code, and Serve's: the client went away; nobody reads the answer
# OperationFailed before UsageError: storage's path errors are both, and then the caller's mistake counts.
_EXPECTED: Final[dict[type[Exception], tuple[int, str]]] = {
    UsageError: (400, "wrong-usage"),
    CheckFailed: (500, "damaged"),  # a file here is not what was published: the operator has to know
    OperationFailed: (503, "unavailable"),
}
_CODES: Final = {400: "bad-request", 404: "not-found", 405: "method-not-allowed", 413: "body-too-large"}


class ApiError(HTTPException):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        headers = {"Retry-After": str(max(1, round(retry_after_s)))} if retry_after_s is not None else None
        super().__init__(status, detail=message, headers=headers)
        self.code = code


def busy(message: str, retry_after_s: float = 1.0) -> ApiError:
    """503: the server has too much to do; try again."""
    return ApiError(503, "busy", message, retry_after_s)


def error_body(code: str, message: str) -> dict[str, Any]:
    """The body of every error."""
    return {"error": {"code": code, "message": message}}


async def send_error(error: ApiError, send: Send) -> None:
    """Answer with an error from a middleware."""
    body = json.dumps(error_body(error.code, str(error.detail))).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(error.headers or {})}
    if error.status_code == 408:
        # Not after 413: closed while the client still sends, its answer would be lost.
        headers["Connection"] = "close"
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status_code, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def explained(problems: Sequence[Any]) -> str:
    """The first problem of a validation in one line; what was sent is not repeated."""
    first = problems[0]
    parts = [str(part) for part in first["loc"]]
    place = ".".join(parts[1:] if len(parts) > 1 and parts[0] in {"body", "query", "path"} else parts) or "body"
    place = "body" if first["type"] == "json_invalid" else place
    text = f"{place}: {first['msg']}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
    return _printable(text)


def add_handlers(app: FastAPI) -> None:
    """Give every error of a route its status, code and message."""

    async def http(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        code = error.code if isinstance(error, ApiError) else _CODES.get(error.status_code, "error")
        return JSONResponse(error_body(code, str(error.detail)), error.status_code, error.headers)

    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse(error_body("invalid", explained(error.errors())), 422)

    async def item(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, MediaError)
        return JSONResponse(error_body(error.code, _printable(str(error))), 422)

    async def expected(_request: Request, error: Exception) -> JSONResponse:
        status, code = next(answer for kind, answer in _EXPECTED.items() if isinstance(error, kind))
        if status == 500:
            logger.error("%s", error)
        headers = {"Retry-After": "10"} if status == 503 else None
        return JSONResponse(error_body(code, _printable(str(error))), status, headers)

    async def bug(_request: Request, error: Exception) -> JSONResponse:
        logger.error("internal error", exc_info=error)
        return JSONResponse(error_body("internal", "an internal error; the server's log has the details"), 500)

    app.add_exception_handler(StarletteHTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(MediaError, item)
    for kind in _EXPECTED:
        app.add_exception_handler(kind, expected)
    app.add_exception_handler(Exception, bug)


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()

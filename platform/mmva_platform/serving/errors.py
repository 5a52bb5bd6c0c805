"""Errors of the API: a stable code for programs, and a line for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError

logger = logging.getLogger(__name__)

CLIENT_CLOSED: Final = 499  # as in nginx and Serve: the client closed the connection, nobody reads the answer
_CODES: Final = {400: "bad-request", 404: "not-found", 405: "method-not-allowed", 413: "body-too-large"}


class ApiError(HTTPException):
    """An HTTP error with a code."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None,
                 headers: Mapping[str, str] | None = None) -> None:  # fmt: skip
        retry = {"Retry-After": str(max(1, round(retry_after_s)))} if retry_after_s is not None else {}
        super().__init__(status, detail=message, headers={**retry, **(headers or {})})
        self.code = code


def busy(message: str, retry_after_s: float = 1.0) -> ApiError:
    """A 503: the server is busy; the client should retry."""
    return ApiError(503, "busy", message, retry_after_s)


def answer_of(error: Exception) -> JSONResponse:
    """The answer to an exception; an unexpected one is logged with its traceback, and the answer has no details."""
    headers: Mapping[str, str] | None = None
    match error:
        case StarletteHTTPException():
            code = error.code if isinstance(error, ApiError) else _CODES.get(error.status_code, "error")
            status, text, headers = error.status_code, str(error.detail), error.headers
        case RequestValidationError():
            status, code, text = 422, "invalid", explained(error.errors())
        case MediaError():
            status, code, text = 422, error.code, str(error)
        case UsageError():  # before OperationFailed: path errors of storage are both, and are the caller's mistake
            status, code, text = 400, "wrong-usage", str(error)
        case CheckFailed():  # a published file was changed: the operator must know
            logger.error("%s", error)
            status, code, text = 500, "damaged", str(error)
        case OperationFailed():
            status, code, text, headers = 503, "unavailable", str(error), {"Retry-After": "10"}
        case _:
            logger.error("internal error", exc_info=error)
            status, code, text = 500, "internal", "internal error; the server's log has the details"
    body = {"error": {"code": code, "message": text.encode(errors="replace").decode()}}
    return JSONResponse(body, status, headers)


async def _handle(_request: Request, error: Exception) -> JSONResponse:
    return answer_of(error)


# Without these, FastAPI handles the first two itself; the others match by their nearest class.
HANDLERS: Final[dict[int | type[Exception], Any]] = dict.fromkeys(
    (StarletteHTTPException, RequestValidationError, MediaError, UsageError, CheckFailed, OperationFailed, Exception),
    _handle,
)


def explained(problems: Sequence[Any]) -> str:
    """The first problem of a validation in one line, without the values sent."""
    first = problems[0]
    parts = [str(part) for part in first["loc"]]
    place = ".".join(parts[1:] if len(parts) > 1 and parts[0] in {"body", "query", "path"} else parts) or "body"
    place = "body" if first["type"] == "json_invalid" else place
    return f"{place}: {first['msg']}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")

"""Health, models, API documentation, and the page, whose files hold no data and need no key."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from mmva_platform.serving.auth import READ
from mmva_platform.serving.context import ContextDep
from mmva_platform.serving.errors import ApiError
from mmva_platform.serving.schemas import ModelsOut

STATIC: Final = Path(__file__).parents[1] / "page"
# d3 styles SVG through attributes and CSSOM, which a policy without 'unsafe-inline' allows.
PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}

router = APIRouter()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process is alive; public."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(context: ContextDep) -> dict[str, str]:
    """Whether a model is available, as of the last poll; public."""
    if context.models.known is None:
        raise ApiError(503, "loading", "no model answers yet", 5.0)
    return {"status": "ok"}


@router.get("/v1/models", response_model=ModelsOut, dependencies=[Depends(READ)])
async def models(context: ContextDep) -> dict[str, Any]:
    """The current model, and the registered versions."""
    serving, settings = context.models.known, context.settings.serving
    return {
        "serving": serving.model_dump() if serving else None,
        "following": settings.model,
        "versions": await context.models.versions(),
    }


@router.get("/openapi.json", dependencies=[Depends(READ)], include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    """The OpenAPI description."""
    return request.app.openapi() | {"servers": [{"url": request.scope.get("root_path") or "/"}]}


@router.get("/docs", dependencies=[Depends(READ)], include_in_schema=False)
async def docs() -> HTMLResponse:
    """Swagger UI from the wheel, so that it works offline. Links are relative, so that any prefix works."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="mmva",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
    )


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page, from memory, because load balancers request it, too."""
    return HTMLResponse(_html(), headers=PAGE_HEADERS)


@cache
def _html() -> str:
    return (STATIC / "explorer.html").read_text(encoding="utf-8")


class _Files(StaticFiles):
    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """A file, with the page's headers."""
        answer = super().file_response(*arguments, **options)
        answer.headers.update(PAGE_HEADERS)
        return answer


PAGE: Final = _Files(directory=STATIC)

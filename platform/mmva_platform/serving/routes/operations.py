"""What operators and their tools ask: health, models, and the API's own documentation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

from mmva_platform.serving.auth import READ
from mmva_platform.serving.context import ContextDep
from mmva_platform.serving.errors import ApiError
from mmva_platform.serving.schemas import ModelsOut

router = APIRouter()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process answers; public."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(context: ContextDep) -> dict[str, str]:
    """Whether a model answers, as far as is known here: it asks no replica. Public, and says nothing else."""
    if context.models.known is None:
        raise ApiError(503, "loading", "no model answers yet", 5.0)
    return {"status": "ok"}


@router.get("/v1/models", response_model=ModelsOut, dependencies=[Depends(READ)])
async def models(context: ContextDep) -> dict[str, Any]:
    """Which model answers, and what is registered."""
    serving, settings = context.models.known, context.settings.serving
    return {
        "serving": serving.model_dump() if serving else None,
        "following": settings.model,
        "versions": await context.models.versions(),
    }


@router.get("/openapi.json", dependencies=[Depends(READ)], include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    """The API's description."""
    return request.app.openapi() | {"servers": [{"url": request.scope.get("root_path") or "/"}]}


@router.get("/docs", dependencies=[Depends(READ)], include_in_schema=False)
async def docs() -> HTMLResponse:
    """Swagger UI, from the wheel: a browser without a network shows it. Links are relative: any prefix will do."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="mmva",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
    )

"""What operators and their tools ask: health, models, metrics, and the API's own documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from mmva_platform.serving.access import READ, services_of
from mmva_platform.serving.metrics import CONTENT_TYPE
from mmva_platform.serving.schemas import Health, ModelsOut
from mmva_platform.serving.services import ApiError

router = APIRouter()

_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}


@router.get("/healthz", response_model=Health, response_model_exclude_none=True)
async def healthz() -> dict[str, Any]:
    """Whether this process answers; public."""
    return {"status": "ok"}


@router.get("/readyz", response_model=Health, response_model_exclude_none=True, responses={503: {"model": Health}})
async def readyz(request: Request) -> Any:
    """Whether a model answers; public, and says nothing but that."""
    if await services_of(request).models.current() is None:
        return JSONResponse({"status": "loading"}, 503, {"Retry-After": "5"})
    return {"status": "ok"}


@router.get("/v1/models", response_model=ModelsOut, dependencies=[Depends(READ)])
async def models(request: Request) -> dict[str, Any]:
    """Which model answers, and what is registered."""
    services = services_of(request)
    serving = await services.models.current()
    return {
        "serving": serving.model_dump() if serving else None,
        "following": services.settings.serving.model,
        "challenger": services.settings.serving.challenger,
        "versions": await services.models.versions(),
    }


@router.get("/metrics", dependencies=[Depends(READ)], response_class=Response)
def metrics(request: Request) -> Response:
    """For Prometheus, of this front process; with a key, like everything else."""
    return Response(request.app.state.metrics.expose(), media_type=CONTENT_TYPE)


@router.get("/openapi.json", dependencies=[Depends(READ)], include_in_schema=False)
def openapi(request: Request) -> JSONResponse:
    """The API's description."""
    return JSONResponse(request.app.openapi_schema)


@router.get("/docs", dependencies=[Depends(READ)], include_in_schema=False)
def docs() -> HTMLResponse:
    """Swagger UI, from the wheel: a browser without a network shows it."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="mmva",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon.png",
    )


@router.get("/docs/{name}", dependencies=[Depends(READ)], include_in_schema=False)
def asset(name: str) -> FileResponse:
    """Swagger UI's files."""
    import fastapi_offline

    if name not in _ASSETS:
        raise ApiError(404, "not-found", "no such file")
    return FileResponse(Path(fastapi_offline.__file__).parent / "static" / name, media_type=_ASSETS[name])

"""POST /v1/search: published annotations, by text, picture, music, a point of the plane, or an item of their own."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool

from mmva.modalities import AXES
from mmva.zeroshot.search import Region
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.search import AnnotationIndex, Hit
from mmva_platform.serving.access import READ, services_of
from mmva_platform.serving.items import annotated
from mmva_platform.serving.keys import Caller
from mmva_platform.serving.openapi import takes
from mmva_platform.serving.schemas import SearchIn, SearchOut
from mmva_platform.serving.services import ApiError, ItemRequest, Row, Services, busy
from mmva_platform.serving.uploads import read_query

router = APIRouter()

UPLOAD_FORM = {"file": {"type": "string", "format": "binary"}, "query": {"type": "string"}}


@router.post("/v1/search", response_model=SearchOut, openapi_extra=takes(SearchIn, UPLOAD_FORM))
async def search(request: Request, caller: Annotated[Caller, Depends(READ)]) -> dict[str, Any]:
    """The items of an annotation that lie nearest to a query, in any modality."""
    services = services_of(request)
    body, item = await read_query(request, SearchIn)
    index = await run_in_threadpool(services.open_index, annotation_uri(services, body.annotation))
    region = Region(**body.region.model_dump()) if body.region else None
    page: dict[str, Any] = {"top": body.top, "offset": body.offset, "modality": body.only, "region": region}
    point: tuple[float, float] | None
    if body.like is not None:
        point, hits = await _like(request, index, body, page)
    else:
        point = body.point if item is None else await point_of(request, services, caller, item, index.model)
        hits = await run_in_threadpool(lambda: index.search(point, **page))
    return {
        "model": index.model.model_dump(),
        "annotation": body.annotation,
        "query": dict(zip(AXES, point or (), strict=True)),
        "hits": [hit.to_json() for hit in hits],
    }


async def _like(
    request: Request, index: AnnotationIndex, body: SearchIn, page: dict[str, Any]
) -> tuple[tuple[float, float], list[Hit]]:
    """An annotated item's point and what is like it. By embedding, which reads files, one search at a time."""
    assert body.like is not None
    own = await run_in_threadpool(index.item, body.like)
    if own is None:
        raise ApiError(404, "not-found", "the annotation has no item of this id")
    scanning: asyncio.Lock = request.app.state.scanning
    if body.by == "embedding" and scanning.locked():
        raise busy("another search by embedding is in work")
    async with scanning if body.by == "embedding" else nullcontext():
        hits = await run_in_threadpool(lambda: index.like(own.id, by=body.by, **page))
    return (own.valence, own.arousal), hits


def annotation_uri(services: Services, name: str) -> str:
    """The URI of an annotation that may be searched: by the settings' name for it, or below a root."""
    settings = services.settings.serving
    if name in settings.annotations:
        return settings.annotations[name]
    if not services.roots.allow(name) and not services.out_roots.allow(name):
        raise ApiError(403, "outside-roots", "annotation: neither a name of serving.annotations nor below a root")
    return name


async def point_of(
    request: Request, services: Services, caller: Caller, item: ItemRequest, model: ModelInfo
) -> tuple[float, float]:
    """A query's point, by the annotation's own model: points of two models cannot be compared."""
    now = await services.models.current()
    if now is not None:
        refuse_other_model(model, now.digest)
    answered, (row,) = await annotated(request, services, caller.name, [item])
    refuse_other_model(model, answered.digest)
    checked_row(row)
    return row["valence"], row["arousal"]


def refuse_other_model(model: ModelInfo, digest: str) -> None:
    """ApiError 409 if an annotation's model is not the one that answers."""
    if digest != model.digest:
        text = f"the annotation was made with {model.name} {model.version or ''} ({model.digest[:12]}), this server "
        raise ApiError(409, "another-model", text + f"answers with {digest[:12]}; search by point, or annotate again")


def checked_row(row: Row) -> None:
    """ApiError 422 for an item that has no point."""
    if row["status"] == "error":
        raise ApiError(422, row["error"]["code"], row["error"]["message"])

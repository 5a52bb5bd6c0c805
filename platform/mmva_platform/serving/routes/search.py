"""POST /v1/search: searches published annotations by text, picture, music, point, or annotated item."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, UploadFile
from pydantic import Json

from mmva.modalities import AXES
from mmva.zeroshot.search import Region
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.search import AnnotationIndex, Hit
from mmva_platform.serving.auth import READ, Caller
from mmva_platform.serving.context import Context, ContextDep, ItemRequest, Row
from mmva_platform.serving.errors import ApiError, busy
from mmva_platform.serving.routes.annotate import item_of_query, item_of_upload, refuse_item
from mmva_platform.serving.schemas import SearchIn, SearchOut

router = APIRouter()

CallerDep = Annotated[Caller, Depends(READ)]
QueryDep = Annotated[Json[SearchIn], Form(description="the body as JSON")]


@router.post("/v1/search", response_model=SearchOut)
async def search(body: SearchIn, context: ContextDep, caller: CallerDep) -> dict[str, Any]:
    """The items of an annotation that are nearest to a query, in any modality."""
    return await _found(context, caller, body, item_of_query(body))


@router.post("/v1/search/upload", response_model=SearchOut)
async def search_by_upload(file: UploadFile, context: ContextDep, caller: CallerDep, query: QueryDep) -> dict[str, Any]:
    """The same for an upload, as a form."""
    refuse_item(query)
    return await _found(context, caller, query, await item_of_upload(file, "query"))


async def _found(context: Context, caller: Caller, body: SearchIn, item: ItemRequest | None) -> dict[str, Any]:
    index = await context.index_threads(context.open_index, annotation_uri(context, body.annotation))
    region = Region(**body.region.model_dump()) if body.region else None
    page: dict[str, Any] = {"top": body.top, "offset": body.offset, "modality": body.only, "region": region}
    point: tuple[float, float] | None
    if body.like is not None:
        point, hits = await _like(context, index, body, page)
    else:
        point = body.point if item is None else await _point_of(context, caller, item, index.model)
        hits = await context.index_threads(index.search, point, **page)
    return {
        "model": index.model.model_dump(),
        "annotation": body.annotation,
        "query": dict(zip(AXES, point or (), strict=True)),
        "hits": [hit.to_json() for hit in hits],
    }


async def _like(
    context: Context, index: AnnotationIndex, body: SearchIn, page: dict[str, Any]
) -> tuple[tuple[float, float], list[Hit]]:
    """An annotated item's point and the most similar items. Only one scan of embeddings runs at a time."""
    assert body.like is not None
    own = await context.index_threads(index.item, body.like)
    if own is None:
        raise ApiError(404, "not-found", "the annotation has no item of this id")
    scans = body.by == "embedding" and not await context.index_threads(
        index.vectors, own.modality, body.offset + body.top
    )
    if scans and context.scanning.locked():
        raise busy("another search by embedding without an index is running")
    async with context.scanning if scans else nullcontext():
        hits = await context.index_threads(index.like, own.id, by=body.by, **page)
    return (own.valence, own.arousal), hits


def annotation_uri(context: Context, name: str) -> str:
    """The URI of an annotation, given by a name in the settings or by a URI below a root."""
    settings = context.settings.serving
    if name in settings.annotations:
        return settings.annotations[name]
    if not context.roots.allow(name) and not context.out_roots.allow(name):
        raise ApiError(403, "outside-roots", "annotation: neither a name in serving.annotations nor below a root")
    return name


async def _point_of(context: Context, caller: Caller, item: ItemRequest, model: ModelInfo) -> tuple[float, float]:
    """A query's point, by the annotation's own model, because points of two models cannot be compared."""
    if context.models.known is not None:
        refuse_other_model(model, context.models.known.digest)
    answers = await context.annotated(caller.name, [item])
    refuse_other_model(model, answers.model.digest)
    row = checked_row(answers.rows[0])
    return row["valence"], row["arousal"]


def refuse_other_model(model: ModelInfo, digest: str) -> None:
    """Raises ApiError 409 if an annotation's model is not the current one."""
    if digest != model.digest:
        text = f"the annotation was made with {model.name} {model.version or ''} ({model.digest[:12]}), this server "
        raise ApiError(409, "another-model", text + f"uses {digest[:12]}; search by point, or annotate again")


def checked_row(row: Row) -> Row:
    """The row. Raises ApiError 422 if the item has no point."""
    if row["status"] == "error":
        raise ApiError(422, row["error"]["code"], row["error"]["message"])
    return row

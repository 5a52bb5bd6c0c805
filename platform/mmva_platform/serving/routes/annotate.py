"""POST /v1/annotate: annotates a few items at once; and the conversion of requests to items."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, UploadFile
from pydantic import BaseModel

from mmva.media.content import modality_of_content
from mmva.media.formats import modality_of
from mmva_platform.serving.auth import ANNOTATE, Caller
from mmva_platform.serving.context import Context, ContextDep, ItemRequest
from mmva_platform.serving.errors import ApiError
from mmva_platform.serving.schemas import AnnotateIn, AnnotateOut, ItemIn, QueryIn

router = APIRouter()

CallerDep = Annotated[Caller, Depends(ANNOTATE)]
_KINDS = {"image": "image", "audio": "music", "video": "video", "text": "caption"}


@router.post("/v1/annotate", response_model=AnnotateOut, response_model_exclude_unset=True)
async def annotate(body: AnnotateIn, context: ContextDep, caller: CallerDep) -> dict[str, Any]:
    """Annotate items given by URI or caption. An error of one item does not affect the others."""
    items = [item_of(item, str(number)) for number, item in enumerate(body.items)]
    return await _answered(context, caller, items, embeddings=body.embeddings)


@router.post("/v1/annotate/upload", response_model=AnnotateOut, response_model_exclude_unset=True)
async def annotate_uploads(
    context: ContextDep,
    caller: CallerDep,
    file: Annotated[list[UploadFile] | None, File(description="items; their file names are the ids")] = None,
    caption: Annotated[list[str] | None, Form(description="texts")] = None,
    embeddings: Annotated[bool, Form(description="return each item's embedding")] = False,  # noqa: FBT002 - a form field
) -> dict[str, Any]:
    """The same for uploads and texts, as a form."""
    files, captions = file or [], caption or []
    if not files and not captions:
        raise ApiError(422, "invalid", "the form has neither a file nor a caption")
    items = [await item_of_upload(one, str(number)) for number, one in enumerate(files)]
    items += [item_of(ItemIn(caption=text), str(number)) for number, text in enumerate(captions, len(files))]
    return await _answered(context, caller, items, embeddings=embeddings)


async def _answered(context: Context, caller: Caller, items: list[ItemRequest], *, embeddings: bool) -> dict[str, Any]:
    most = context.settings.serving.max_items
    if len(items) > most:
        raise ApiError(413, "too-many-items", f"{len(items)} items; a request may have {most}")
    answers = await context.annotated(caller.name, items)
    rows = answers.rows
    if not embeddings:
        rows = [{name: value for name, value in row.items() if name != "embedding"} for row in rows]
    return {"model": answers.model.model_dump(), "items": rows}


def item_of(item: ItemIn, number: str) -> ItemRequest:
    """The item of a URI or caption."""
    modality: str | None = item.modality
    if modality is None:
        modality = "caption" if item.caption is not None else modality_of(item.uri or "")
    name = item.id if item.id is not None else number
    return ItemRequest(id=name, uri=item.uri, modality=modality, caption=item.caption, data=None)


async def item_of_upload(file: UploadFile, number: str, modality: str | None = None) -> ItemRequest:
    """The item of an upload. Its modality is that of its bytes; of texts and unknown bytes, by name or content type."""
    data, name = await file.read(), file.filename or number
    named = modality_of(name) or _KINDS.get((file.content_type or "").partition("/")[0].lower())
    kind = modality or modality_of_content(data) or named
    return ItemRequest(id=name[:500], uri=None, modality=kind, caption=None, data=data)


def item_of_query(body: QueryIn) -> ItemRequest | None:
    """The item of a query; None for a point. Raises ApiError 422 unless exactly one is given."""
    if body.given() != 1:
        raise ApiError(422, "invalid", "send exactly one of text, uri and point")
    if body.text is None and body.uri is None:
        return None
    return item_of(ItemIn(uri=body.uri, caption=body.text, modality=body.modality), "query")


def refuse_item(body: BaseModel) -> None:
    """Raises ApiError 422 if a query with an upload names another item."""
    if any(getattr(body, name, None) is not None for name in ("text", "uri", "point", "like")):
        raise ApiError(422, "invalid", "query: leave out text, uri, point and like if you upload a file")

"""POST /v1/annotate: a few items, answered at once."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, UploadFile

from mmva_platform.serving.auth import ANNOTATE, Caller
from mmva_platform.serving.context import Context, ContextDep, ItemRequest
from mmva_platform.serving.errors import ApiError
from mmva_platform.serving.routes.items import item_of, item_of_upload, refuse_above
from mmva_platform.serving.schemas import AnnotateIn, AnnotateOut, ItemIn

router = APIRouter()

CallerDep = Annotated[Caller, Depends(ANNOTATE)]


@router.post("/v1/annotate", response_model=AnnotateOut, response_model_exclude_unset=True)
async def annotate(body: AnnotateIn, context: ContextDep, caller: CallerDep) -> dict[str, Any]:
    """Points of items by URI or caption. An item's error is its own."""
    refuse_above(context.settings.serving.max_items, len(body.items))
    items = [item_of(item, str(number)) for number, item in enumerate(body.items)]
    return await _answered(context, caller, items, embeddings=body.embeddings)


@router.post("/v1/annotate/upload", response_model=AnnotateOut, response_model_exclude_unset=True)
async def annotate_uploads(
    context: ContextDep,
    caller: CallerDep,
    file: Annotated[list[UploadFile] | None, File(description="items; their file names are the ids")] = None,
    caption: Annotated[list[str] | None, Form(description="texts")] = None,
    embeddings: Annotated[bool, Form(description="with each item's embedding")] = False,  # noqa: FBT002 - a form field
) -> dict[str, Any]:
    """The same of uploads and texts, as a form."""
    files, captions = file or [], caption or []
    if not files and not captions:
        raise ApiError(422, "invalid", "the form has neither a file nor a caption")
    refuse_above(context.settings.serving.max_items, len(files) + len(captions))
    items = [await item_of_upload(one, str(number)) for number, one in enumerate(files)]
    items += [item_of(ItemIn(caption=text), str(number)) for number, text in enumerate(captions, len(files))]
    return await _answered(context, caller, items, embeddings=embeddings)


async def _answered(context: Context, caller: Caller, items: list[ItemRequest], *, embeddings: bool) -> dict[str, Any]:
    answers = await context.annotated(caller.name, items)
    rows = answers.rows
    if not embeddings:
        rows = [{name: value for name, value in row.items() if name != "embedding"} for row in rows]
    return {"model": answers.model.model_dump(), "items": rows}

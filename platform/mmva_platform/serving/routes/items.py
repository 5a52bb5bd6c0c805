"""From what a client sends to items."""

from __future__ import annotations

from typing import Any

from fastapi import UploadFile
from pydantic import ValidationError

from mmva.media.content import modality_of_content
from mmva.media.formats import modality_of
from mmva_platform.serving.context import ItemRequest
from mmva_platform.serving.errors import ApiError, explained
from mmva_platform.serving.schemas import BodyT, ItemIn, QueryIn

_KINDS = {"image": "image", "audio": "music", "video": "video", "text": "caption"}


def item_of(item: ItemIn, number: str) -> ItemRequest:
    """An item by URI or caption."""
    modality: str | None = item.modality
    if modality is None:
        modality = "caption" if item.caption is not None else modality_of(item.uri or "")
    name = item.id if item.id is not None else number
    return ItemRequest(id=name, uri=item.uri, modality=modality, caption=item.caption, data=None)


async def item_of_upload(file: UploadFile, number: str, modality: str | None = None) -> ItemRequest:
    """An upload: what its bytes are, whatever its name says; a text, and what nobody knows, by name or content type."""
    data, name = await file.read(), file.filename or number
    named = modality_of(name) or _KINDS.get((file.content_type or "").partition("/")[0].lower())
    kind = modality or modality_of_content(data) or named
    return ItemRequest(id=name[:500], uri=None, modality=kind, caption=None, data=data)


def item_of_query(body: QueryIn) -> ItemRequest | None:
    """The item that stands for a query; None for a point. ApiError 422 unless there is exactly one of them."""
    if body.given() != 1:
        raise ApiError(422, "invalid", "send exactly one of text, uri and point")
    if body.text is None and body.uri is None:
        return None
    return item_of(ItemIn(uri=body.uri, caption=body.text, modality=body.modality), "query")


def query_beside_upload(kind: type[BodyT], text: str) -> BodyT:
    """The JSON of a form's `query`. ApiError 422 if it is not valid, or names another item than the upload."""
    try:
        body = kind.model_validate_json(text.encode(errors="replace"))
    except ValidationError as error:
        problems: Any = error.errors(include_url=False, include_input=False)
        raise ApiError(422, "invalid", f"query: {explained(problems)}") from None
    if body.given() if isinstance(body, QueryIn) else getattr(body, "uri", None):
        raise ApiError(422, "invalid", "query: the file is what to search by; leave out text, uri, point and like")
    return body


def refuse_above(most: int, count: int) -> None:
    """ApiError 413 for too many items."""
    if count > most:
        raise ApiError(413, "too-many-items", f"{count} items, the limit of a request is {most}")

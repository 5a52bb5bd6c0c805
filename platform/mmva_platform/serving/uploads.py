"""From a request's body, JSON or a form, to items."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from mmva.media.content import modality_of_content
from mmva.media.formats import modality_of
from mmva_platform.serving.schemas import AnnotateIn, Body, ItemIn, QueryIn, SummaryIn
from mmva_platform.serving.services import ApiError, ItemRequest

BodyT = TypeVar("BodyT", bound=Body)
_KINDS = {"image": "image", "audio": "music", "video": "video", "text": "caption"}


async def read_items(request: Request, most: int) -> tuple[list[ItemRequest], bool]:
    """Items of POST /v1/annotate and whether embeddings are wanted.

    A form's `file` parts are items, their file names the ids, and so are its `caption` fields.

    Raises:
        ApiError: 400, 413 or 422.
    """
    if not _is_form(request):
        body = parse(AnnotateIn, await request.body())
        _refuse_above(most, len(body.items))
        return [_item(item, str(number)) for number, item in enumerate(body.items)], body.embeddings
    async with _form(request, most) as form:
        items: list[ItemRequest] = []
        wanted = False
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) and name == "file":
                items.append(await _upload(value, str(len(items))))
            elif isinstance(value, str) and name == "caption":
                items.append(_caption(value, str(len(items))))
            elif isinstance(value, str) and name == "embeddings":
                wanted = value.strip().lower() in {"1", "true", "yes"}
            else:
                raise ApiError(422, "invalid", f"unknown form field {name[:100]!r}; send file, caption or embeddings")
    if not items:
        raise ApiError(422, "invalid", "the form holds no file and no caption")
    _refuse_above(most, len(items))
    return items, wanted


async def read_query(request: Request, kind: type[BodyT]) -> tuple[BodyT, ItemRequest | None]:
    """A query's body and the item that stands for it; None for a point.

    As a form: `query`, the JSON of the body, and `file`, the upload that it is about.
    """
    upload = None
    if _is_form(request):
        body, upload = await _body_and_file(request, kind)
    else:
        body = parse(kind, await request.body())
    assert isinstance(body, QueryIn)
    if body.given() + (upload is not None) != 1:
        raise ApiError(422, "invalid", "give one thing to go by: a text, a uri, a point, or an upload")
    if upload is not None:
        return body, upload
    if body.text is None and body.uri is None:
        return body, None
    return body, _item(ItemIn(uri=body.uri, caption=body.text, modality=body.modality), "query")


async def read_video(request: Request) -> tuple[SummaryIn, ItemRequest]:
    """The body of POST /v1/summarize and its video; a form as in read_query."""
    upload = None
    if _is_form(request):
        body, upload = await _body_and_file(request, SummaryIn)
    else:
        body = parse(SummaryIn, await request.body())
    if (body.uri is None) == (upload is None):
        raise ApiError(422, "invalid", "give a uri, or an upload")
    if upload is not None:
        return body, upload | {"modality": "video"}
    return body, ItemRequest(id="video", uri=body.uri, modality="video", caption=None, data=None)


async def _body_and_file(request: Request, kind: type[BodyT]) -> tuple[BodyT, ItemRequest]:
    async with _form(request, 1) as form:
        file, text = form.get("file"), form.get("query", "{}")
        if isinstance(text, UploadFile) or not isinstance(file, UploadFile):
            raise ApiError(422, "invalid", "send a `file` and, as JSON, a `query`")
        return parse(kind, str(text).encode(errors="replace")), await _upload(file, "query")


def parse(kind: type[BodyT], data: bytes) -> BodyT:
    """A body of JSON. ApiError 422 with the place and the reason of the first problem."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ApiError(422, "invalid", explained(error.errors(include_url=False, include_input=False))) from None


def explained(problems: Sequence[Any]) -> str:
    """The first problem of a validation in one line; what was sent is not repeated."""
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"]) or "body"
    text = f"{place}: {first['msg']}" + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
    return text.encode(errors="replace").decode()


def _item(item: ItemIn, number: str) -> ItemRequest:
    name = item.id if item.id is not None else number
    modality: str | None = item.modality
    if modality is None:
        modality = "caption" if item.caption is not None else modality_of(item.uri or "")
    return ItemRequest(id=name, uri=item.uri, modality=modality, caption=item.caption, data=None)


def _caption(text: str, number: str) -> ItemRequest:
    return ItemRequest(id=number, uri=None, modality="caption", caption=text, data=None)


async def _upload(file: UploadFile, number: str) -> ItemRequest:
    data = await file.read()
    name = file.filename or number
    told = modality_of(name) or _KINDS.get((file.content_type or "").partition("/")[0].lower())
    modality = modality_of_content(data) or told  # texts, and what nobody knows, by their names
    return ItemRequest(id=name[:500], uri=None, modality=modality, caption=None, data=data)


@asynccontextmanager
async def _form(request: Request, most: int) -> AsyncIterator[FormData]:
    """The request's form; its parts are closed at the end."""
    try:
        form = await request.form(max_files=most, max_fields=most + 1, max_part_size=2**20)
    except HTTPException as error:
        if isinstance(error, ApiError):
            raise
        too_many = error.detail.startswith("Too many")
        raise ApiError(413 if too_many else 400, "too-many-items" if too_many else "bad-form", error.detail) from None
    try:
        yield form
    finally:
        await form.close()


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _refuse_above(most: int, count: int) -> None:
    if count > most:
        raise ApiError(413, "too-many-items", f"{count} items, the limit of a request is {most}")

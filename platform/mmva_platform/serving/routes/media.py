"""/v1/explore/catalogs/NAME/{thumbnail,media,text}: the very bytes that were annotated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from mmva.errors import MediaError, OperationFailed
from mmva_platform.annotation.media import THUMBNAIL_SIDES, MediaReader, piece_of
from mmva_platform.serving.auth import READ
from mmva_platform.serving.context import Context, ContextDep
from mmva_platform.serving.errors import ApiError
from mmva_platform.serving.routes.explore import item_in

Result = TypeVar("Result")

_PRIVATE: Final = {"Cache-Control": "private, no-cache"}

# What the media errors are over HTTP; every other is a file that cannot be shown (415).
_STATUS: Final = {"not-found": 404, "outside-roots": 403, "changed": 409, "too-many-bytes": 413}

router = APIRouter(prefix="/v1/explore/catalogs/{name}", dependencies=[Depends(READ)])


@router.get("/thumbnail")
async def thumbnail(
    request: Request,
    name: str,
    id: str,  # noqa: A002
    context: ContextDep,
    side: int = THUMBNAIL_SIDES[0],
) -> Response:
    """A picture as JPEG, made from the annotated file."""
    if side not in THUMBNAIL_SIDES:
        raise ApiError(422, "invalid", f"side: one of {THUMBNAIL_SIDES}")
    found = await _item(context, name, id, "image")
    headers = _PRIVATE | {"ETag": f'"{found["sha256"][:32]}-{side}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    data = await _read(context, _reader(context).thumbnail, found, side)
    return Response(data, headers=headers, media_type="image/jpeg")


@router.get("/media")
async def sound(request: Request, name: str, id: str, context: ContextDep) -> Response:  # noqa: A002
    """The annotated music or video itself; takes Range."""
    found = await _item(context, name, id, "music", "video")
    content_type, data = await _read(context, _reader(context).sound, found)
    headers = _PRIVATE | {"Accept-Ranges": "bytes", "ETag": f'"{found["sha256"][:32]}"'}
    piece = piece_of(data, request.headers.get("range"))
    if piece is None:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(data)}"})
    if len(piece.data) == piece.size:
        return Response(data, headers=headers, media_type=content_type)
    headers["Content-Range"] = f"bytes {piece.start}-{piece.start + len(piece.data) - 1}/{piece.size}"
    return Response(piece.data, status_code=206, headers=headers, media_type=content_type)


@router.get("/text")
async def text(name: str, id: str, context: ContextDep) -> dict[str, str]:  # noqa: A002
    """A caption's text."""
    found = await _item(context, name, id, "caption")
    return {"text": found["text"] or await _read(context, _reader(context).text, found)}


def _reader(context: Context) -> MediaReader:
    return MediaReader(context.roots, context.settings.storage)


async def _item(context: Context, name: str, id: str, *kinds: str) -> dict[str, Any]:  # noqa: A002
    _, found = await context.index_threads(item_in, context, name, id)
    if found["modality"] not in kinds:
        raise ApiError(415, "unsupported-media-type", f"this item is of modality {found['modality']}")
    return found


async def _read(context: Context, read: Callable[..., Result], *arguments: Any) -> Result:
    """Call a reader in a thread; what keeps an item from being shown becomes an answer without its URI."""
    try:
        return await context.media_threads(read, *arguments)
    except MediaError as error:
        message = "outside the allowed roots" if error.code == "outside-roots" else str(error)
        raise ApiError(_STATUS.get(error.code, 415), error.code, message) from None
    except OperationFailed:
        raise ApiError(503, "storage-unavailable", "the storage of this file does not answer", 5.0) from None

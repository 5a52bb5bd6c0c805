"""/v1/explore: the page's views of published annotations: the plane, items with media, and neighbours."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

import pyarrow.compute as pc
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pyarrow import csv as pa_csv
from pydantic import Field

from mmva.errors import MediaError, OperationFailed, UsageError
from mmva.modalities import MEDIA_KINDS, MediaKind
from mmva.zeroshot.search import Region
from mmva_platform.annotation.media import THUMBNAIL_SIDES, MediaReader, piece_of
from mmva_platform.search.explored import ExploredCatalog, mood_of
from mmva_platform.search.view import CELLS
from mmva_platform.serving.auth import READ
from mmva_platform.serving.context import Context, ContextDep
from mmva_platform.serving.errors import ApiError
from mmva_platform.settings import Config

Result = TypeVar("Result")

_JOBS_SHOWN: Final = 50
_CSV_ROWS: Final = 1_000_000
_PRIVATE: Final = {"Cache-Control": "private, no-cache"}
# HTTP status by code of a media error; 415 for others: the file cannot be shown.
_STATUS: Final = {"not-found": 404, "outside-roots": 403, "changed": 409, "too-many-bytes": 413}

router = APIRouter(prefix="/v1/explore", dependencies=[Depends(READ)])


class Window(Config):
    """The part of the plane to show, and filters."""

    v0: float = Field(0, ge=0, le=1, description="valence from")
    v1: float = Field(1, ge=0, le=1, description="valence to")
    a0: float = Field(0, ge=0, le=1, description="arousal from")
    a1: float = Field(1, ge=0, le=1, description="arousal to")
    modality: tuple[MediaKind, ...] = MEDIA_KINDS
    mood: str | None = Field(None, max_length=40, description="only items of this mood")
    width: float | None = Field(None, ge=0, le=1, description="only items whose 90 % intervals are at most so wide")
    cells: int = Field(CELLS, ge=8, le=256, description="a side of the grid")

    @property
    def selection(self) -> dict[str, Any]:
        """The rectangle, with corners in any order, and the filters, as arguments for ExploredCatalog."""
        (v0, v1), (a0, a1) = sorted((self.v0, self.v1)), sorted((self.a0, self.a1))
        region = Region((v0, v1), (a0, a1))
        return {"region": region, "modalities": self.modality, "mood": self.mood, "width": self.width}


def catalog_uri(context: Context, name: str) -> str:
    """The URI of a name in serving.annotations, or of a job's id. Raises ApiError 404. Blocks."""
    known = context.settings.serving.annotations
    if name in known:
        return known[name]
    if len(name) == 16 and set(name) <= set("0123456789abcdef"):
        return context.jobs.get(name).spec.out
    raise ApiError(404, "not-found", f"no annotation {name!r}; known: {', '.join(known) or 'none'}")


def open_catalog(context: Context, name: str) -> ExploredCatalog:
    """An annotation for the page. Raises ApiError 404 if it is not published. Blocks."""
    try:
        return context.open_index(catalog_uri(context, name))
    except UsageError as error:
        raise ApiError(404, "not-found", str(error)) from None


@router.get("")
async def overview(context: ContextDep) -> JSONResponse:
    """The annotations of the settings, then finished jobs, the newest first."""
    jobs = await context.job_threads(context.jobs.jobs)
    named = context.settings.serving.annotations
    done = [job for job in reversed(jobs) if job.state == "done" and job.spec.out not in named.values()][:_JOBS_SHOWN]
    catalogs = [{"name": name, "title": name} for name in named]
    catalogs += [{"name": job.id, "title": job.spec.out.rpartition("/")[2]} for job in done]
    return JSONResponse({"catalogs": catalogs})


@router.get("/catalogs/{name}")
async def summary(name: str, context: ContextDep) -> JSONResponse:
    """Number of items by modality, and moods."""
    return await _shown(context, name, ExploredCatalog.summary)


@router.get("/catalogs/{name}/view")
async def view(name: str, window: Annotated[Window, Query()], context: ContextDep) -> JSONResponse:
    """A window of the plane: its points if they are few, else counts in the cells of a grid."""
    return await _shown(context, name, lambda catalog: catalog.view(**window.selection, cells=window.cells))


@router.get("/catalogs/{name}/view.csv", response_class=Response)
async def view_as_csv(name: str, window: Annotated[Window, Query()], context: ContextDep) -> Response:
    """All items of a window, as CSV."""

    def made() -> bytes:
        found = open_catalog(context, name).table(**window.selection, most=_CSV_ROWS)
        if found is None:
            text = f"more than {_CSV_ROWS:,} items; zoom in, or use `mmva annotations export --to csv`"
            raise ApiError(413, "too-many-items", text)
        for column in ("id", "uri"):  # a spreadsheet would execute such texts as formulas
            escaped = pc.replace_substring_regex(found[column], r"^([=+\-@\t\r])", r"'\1")
            found = found.set_column(found.column_names.index(column), column, escaped)
        buffer = io.BytesIO()
        pa_csv.write_csv(found, buffer)
        return buffer.getvalue()

    headers = {"Content-Disposition": 'attachment; filename="items.csv"'}
    return Response(await context.index_threads(made), headers=headers, media_type="text/csv; charset=utf-8")


@router.get("/catalogs/{name}/item")
async def item(name: str, id: str, context: ContextDep) -> Response:  # noqa: A002
    """All fields of an item, and its nearest neighbours in each other modality."""

    def made(catalog: ExploredCatalog) -> dict[str, Any]:
        found = _details(catalog, id)
        near = catalog.around((found["valence"], found["arousal"]), without=found["modality"])
        return {"item": found, "near": _hits(near)}

    return await _shown(context, name, made)


@router.get("/catalogs/{name}/around")
async def around(
    name: str,
    v: Annotated[float, Query(ge=0, le=1)],
    a: Annotated[float, Query(ge=0, le=1)],
    context: ContextDep,
) -> JSONResponse:
    """The nearest items of each modality to a point of the plane."""
    point = {"valence": v, "arousal": a, "mood": mood_of((v, a))}
    return await _shown(context, name, lambda catalog: point | {"near": _hits(catalog.around((v, a)))})


@router.get("/catalogs/{name}/thumbnail")
async def thumbnail(
    request: Request,
    name: str,
    id: str,  # noqa: A002
    context: ContextDep,
    side: int = THUMBNAIL_SIDES[0],
) -> Response:
    """A thumbnail of an image, as JPEG."""
    if side not in THUMBNAIL_SIDES:
        raise ApiError(422, "invalid", f"side: one of {THUMBNAIL_SIDES}")
    found = await _item(context, name, id, "image")
    headers = _PRIVATE | {"ETag": f'"{found["sha256"][:32]}-{side}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    data = await _read(context, _reader(context).thumbnail, found, side)
    return Response(data, headers=headers, media_type="image/jpeg")


@router.get("/catalogs/{name}/media")
async def sound(request: Request, name: str, id: str, context: ContextDep) -> Response:  # noqa: A002
    """The annotated music or video; supports Range."""
    found = await _item(context, name, id, "music", "video")
    content_type, data = await _read(context, _reader(context).sound, found)
    headers = _PRIVATE | {"Accept-Ranges": "bytes", "ETag": f'"{found["sha256"][:32]}"'}
    piece = piece_of(data, request.headers.get("range"))
    if piece is None:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(data)}"})
    part = len(piece.data) < piece.size
    if part:
        headers["Content-Range"] = f"bytes {piece.start}-{piece.start + len(piece.data) - 1}/{piece.size}"
    return Response(piece.data, 206 if part else 200, headers, content_type)


@router.get("/catalogs/{name}/text")
async def text(name: str, id: str, context: ContextDep) -> dict[str, str]:  # noqa: A002
    """A caption's text."""
    found = await _item(context, name, id, "caption")
    return {"text": found["text"] or await _read(context, _reader(context).text, found)}


async def _shown(context: Context, name: str, make: Callable[[ExploredCatalog], dict[str, Any]]) -> JSONResponse:
    """What `make` returns for a catalog, and the catalog's model."""

    def made() -> dict[str, Any]:
        catalog = open_catalog(context, name)
        return make(catalog) | {"model": catalog.model.model_dump()}

    return JSONResponse(await context.index_threads(made))


def _details(catalog: ExploredCatalog, id: str) -> dict[str, Any]:  # noqa: A002
    found = catalog.details(id)
    if found is None:
        raise ApiError(404, "not-found", "no such item in this annotation")
    return found


def _hits(near: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    return {kind: [hit.to_json() for hit in hits] for kind, hits in near.items()}


def _reader(context: Context) -> MediaReader:
    return MediaReader(context.roots, context.settings.storage)


async def _item(context: Context, name: str, id: str, *kinds: str) -> dict[str, Any]:  # noqa: A002
    found = await context.index_threads(lambda: _details(open_catalog(context, name), id))
    if found["modality"] not in kinds:
        raise ApiError(415, "unsupported-media-type", f"this item is of modality {found['modality']}")
    return found


async def _read(context: Context, read: Callable[..., Result], *arguments: Any) -> Result:
    """Call a reader in a thread; its errors become HTTP errors that do not reveal the URI."""
    try:
        return await context.media_threads(read, *arguments)
    except MediaError as error:
        message = "outside the allowed roots" if error.code == "outside-roots" else str(error)
        raise ApiError(_STATUS.get(error.code, 415), error.code, message) from None
    except OperationFailed:
        raise ApiError(503, "storage-unavailable", "the storage of this file does not answer", 5.0) from None

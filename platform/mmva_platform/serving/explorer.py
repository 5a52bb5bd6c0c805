"""The explorer: a page at `/`, and the data behind it under /v1/explore, all of which asks for a key.

    app.include_router(explorer_router(ExplorerSources(...), Depends(Needs("read"))))

The sources say where annotations come from, where media may be read, what places a dropped-in item, and which jobs
there are; nothing here knows keys, Ray or the registry.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple, TypedDict

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import Base64Bytes, Field
from starlette.concurrency import run_in_threadpool

from mmva.errors import MediaError, OperationFailed, UsageError
from mmva.media.formats import AUDIO_FORMATS, IMAGE_FORMATS, sniff
from mmva.modalities import MEDIA_KINDS, MediaKind, Modality
from mmva.zeroshot.search import Region
from mmva_platform.annotation.roots import AllowedRoots
from mmva_platform.search.index import AnnotationIndex
from mmva_platform.serving.explorer_catalog import ExploredCatalog, mood_of
from mmva_platform.serving.explorer_media import THUMBNAIL_SIDES, MediaReader, piece_of
from mmva_platform.serving.explorer_page import page_router
from mmva_platform.serving.explorer_view import CELLS
from mmva_platform.settings import Config, StorageSettings

_CATALOGS_KEPT: Final = 8
_GZIP_FROM: Final = 1024
_PRIVATE: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-cache"}
# What the page's media errors are over HTTP; every other is a file that cannot be shown (415).
_STATUS: Final = {"not-found": 404, "outside-roots": 403, "changed": 409, "too-many-bytes": 413}


class Placed(NamedTuple):
    """A dropped-in item's point, and the digest of the model that placed it."""

    valence: float
    arousal: float
    model_digest: str


class JobRow(TypedDict):
    """An annotation job as the page lists it; None is what is not known (yet)."""

    id: str
    state: str
    catalog: str
    done: int
    items: int | None
    eta_s: float | None
    message: str | None


@dataclass(frozen=True)
class ExplorerSources:
    """What the explorer needs of the world.

    Attributes:
        annotations: Name -> URI of the published annotations to show; asked at each request.
        open_index: A URI -> its index; may keep it.
        roots: Where media may be read from.
        storage: How to read them.
        place: An image's or a piece of music's bytes, or a caption's text -> its point; None if nothing can be placed.
        jobs: The annotation jobs, newest first; None if there is no queue.
    """

    annotations: Callable[[], Mapping[str, str]]
    open_index: Callable[[str], AnnotationIndex]
    roots: AllowedRoots
    storage: StorageSettings = field(default_factory=StorageSettings)
    place: Callable[[Modality, bytes | str], Awaitable[Placed]] | None = None
    jobs: Callable[[], Sequence[JobRow]] | None = None


class Window(Config):
    """The part of the plane that the page shows, and of which modalities."""

    v0: float = Field(0, ge=0, le=1, description="valence from")
    v1: float = Field(1, ge=0, le=1, description="valence to")
    a0: float = Field(0, ge=0, le=1, description="arousal from")
    a1: float = Field(1, ge=0, le=1, description="arousal to")
    modality: tuple[MediaKind, ...] = MEDIA_KINDS
    cells: int = Field(CELLS, ge=8, le=256, description="a side of the grid")

    @property
    def region(self) -> Region:
        """Its rectangle, whichever corner comes first."""
        v0, v1, a0, a1 = self.v0, self.v1, self.a0, self.a1
        return Region((min(v0, v1), max(v0, v1)), (min(a0, a1), max(a0, a1)))


class PlaceIn(Config):
    """A sentence, or a file's bytes in base64."""

    text: str | None = Field(None, max_length=20_000)
    media: Base64Bytes | None = None


def explorer_router(sources: ExplorerSources, authorised: Any) -> APIRouter:
    """The page, open to everybody, and its data, behind `authorised` (a FastAPI `Depends` that refuses the others)."""
    data = APIRouter(prefix="/v1/explore", tags=["explorer"], dependencies=[authorised])
    catalogs = _Catalogs(sources)
    _add_overview(data, sources, catalogs)
    _add_catalog(data, catalogs)
    _add_media(data, catalogs, MediaReader(sources.roots, sources.storage))
    if sources.place is not None:
        _add_place(data, catalogs, sources.place)
    router = page_router()
    router.routes.extend(data.routes)  # one flat list, so that whoever counts open routes sees all of them
    return router


class _Catalogs:
    """Opened annotations by the names that the settings give them."""

    def __init__(self, sources: ExplorerSources) -> None:
        self._sources = sources
        # A new index, such as one that shows a retry, is another key.
        self._explored = lru_cache(_CATALOGS_KEPT)(ExploredCatalog)

    def names(self) -> list[str]:
        return list(self._sources.annotations())

    def open(self, name: str) -> ExploredCatalog:
        uri = self._sources.annotations().get(name)
        if uri is None:
            raise HTTPException(404, f"no annotation {name!r}; there are: {', '.join(self.names()) or 'none'}")
        try:
            return self._explored(self._sources.open_index(uri))
        except UsageError as error:
            raise HTTPException(404, str(error)) from None

    def item(self, name: str, id: str) -> dict[str, Any]:  # noqa: A002
        found = self.open(name).item(id)
        if found is None:
            raise HTTPException(404, "no such item in this annotation")
        return found


def _add_overview(router: APIRouter, sources: ExplorerSources, catalogs: _Catalogs) -> None:
    @router.get("")
    def overview(request: Request) -> Response:
        """What there is to explore, and whether items can be placed and jobs listed."""
        able = {"place": sources.place is not None, "jobs": sources.jobs is not None}
        return _json(request, {"catalogs": catalogs.names()} | able)

    @router.get("/jobs")
    def jobs(request: Request) -> Response:
        """The annotation jobs, newest first."""
        return _json(request, {"jobs": list(sources.jobs()) if sources.jobs else []})


def _add_catalog(router: APIRouter, catalogs: _Catalogs) -> None:
    @router.get("/catalogs/{name}")
    def summary(request: Request, name: str) -> Response:
        """How many items of each modality a catalog holds."""
        explored = catalogs.open(name)
        return _json(request, explored.summary() | _model(explored))

    @router.get("/catalogs/{name}/view")
    def view(request: Request, name: str, window: Annotated[Window, Query()]) -> Response:
        """A window of the plane: its points when they are few, counts of a grid's cells otherwise."""
        explored = catalogs.open(name)
        return _json(request, explored.view(window.region, window.modality, window.cells) | _model(explored))

    @router.get("/catalogs/{name}/item")
    def item(request: Request, name: str, id: str) -> Response:  # noqa: A002
        """An item in full, and its nearest neighbours in each other modality."""
        explored = catalogs.open(name)
        found = catalogs.item(name, id)
        near = explored.around((found["valence"], found["arousal"]), without=found["modality"])
        return _json(request, {"item": found, "near": _hits(near)} | _model(explored))

    @router.get("/catalogs/{name}/around")
    def around(
        request: Request,
        name: str,
        v: Annotated[float, Query(ge=0, le=1)],
        a: Annotated[float, Query(ge=0, le=1)],
    ) -> Response:
        """The nearest items of each modality to a point of the plane."""
        explored = catalogs.open(name)
        near = explored.around((v, a))
        return _json(request, _point(v, a) | {"near": _hits(near)} | _model(explored))


def _add_media(router: APIRouter, catalogs: _Catalogs, media: MediaReader) -> None:
    @router.get("/catalogs/{name}/thumbnail")
    def thumbnail(request: Request, name: str, id: str, side: int = THUMBNAIL_SIDES[0]) -> Response:  # noqa: A002
        """A picture as JPEG, made from the annotated file."""
        if side not in THUMBNAIL_SIDES:
            raise HTTPException(422, f"side is one of {THUMBNAIL_SIDES}")
        found = _of_kind(catalogs.item(name, id), "image")
        headers = _PRIVATE | {"ETag": f'"{found["sha256"][:32]}-{side}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(_media(media.thumbnail, found, side), headers=headers, media_type="image/jpeg")

    @router.get("/catalogs/{name}/media")
    def sound(request: Request, name: str, id: str) -> Response:  # noqa: A002
        """The annotated music or video itself; takes Range."""
        found = _of_kind(catalogs.item(name, id), "music", "video")
        content_type, data = _media(media.sound, found)
        headers = _PRIVATE | {"Accept-Ranges": "bytes", "ETag": f'"{found["sha256"][:32]}"'}
        piece = piece_of(data, request.headers.get("range"))
        if piece is None:
            return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(data)}"})
        if len(piece.data) == piece.size:
            return Response(data, headers=headers, media_type=content_type)
        headers["Content-Range"] = f"bytes {piece.start}-{piece.start + len(piece.data) - 1}/{piece.size}"
        return Response(piece.data, status_code=206, headers=headers, media_type=content_type)

    @router.get("/catalogs/{name}/text")
    def text(request: Request, name: str, id: str) -> Response:  # noqa: A002
        """A caption's text."""
        found = _of_kind(catalogs.item(name, id), "caption")
        return _json(request, {"text": found["text"] or _media(media.text, found)})


def _add_place(
    router: APIRouter, catalogs: _Catalogs, place: Callable[[Modality, bytes | str], Awaitable[Placed]]
) -> None:
    @router.post("/catalogs/{name}/place")
    async def place_item(request: Request, name: str, asked: PlaceIn) -> Response:
        """The point of a sentence, a picture or a piece of music, and what is near."""
        explored = await run_in_threadpool(catalogs.open, name)
        modality, content = _query_item(asked)
        try:
            placed = await place(modality, content)
        except MediaError as error:
            raise HTTPException(422, f"{error.code}: {error}") from None
        near = await run_in_threadpool(explored.around, (placed.valence, placed.arousal))
        found = _point(placed.valence, placed.arousal) | {"modality": modality, "near": _hits(near)}
        same = placed.model_digest == explored.index.model.digest
        return _json(request, found | {"same_model": same} | _model(explored))


def _query_item(asked: PlaceIn) -> tuple[Modality, bytes | str]:
    """What is to be placed: of a file, by what its first bytes tell."""
    if (asked.text is None) == (asked.media is None):
        raise HTTPException(422, "give either text or media")
    if asked.text is not None:
        return "caption", asked.text
    assert asked.media is not None
    kind = sniff(asked.media)
    if kind in IMAGE_FORMATS:
        return "image", asked.media
    if kind in AUDIO_FORMATS:
        return "music", asked.media
    raise HTTPException(415, f"{kind or 'unrecognised'} data; a picture, a piece of music or a sentence can be placed")


def _of_kind(item: dict[str, Any], *kinds: str) -> dict[str, Any]:
    if item["modality"] not in kinds:
        raise HTTPException(415, f"this item is of modality {item['modality']}")
    return item


def _media(read: Callable[..., Any], *arguments: Any) -> Any:
    """Call a reader; what keeps an item from being shown becomes an answer that says so, without its URI."""
    try:
        return read(*arguments)
    except MediaError as error:
        message = "outside the allowed roots" if error.code == "outside-roots" else str(error)
        raise HTTPException(_STATUS.get(error.code, 415), f"{error.code}: {message}") from None
    except OperationFailed:
        raise HTTPException(503, "the storage of this file is away", headers={"Retry-After": "5"}) from None


def _point(valence: float, arousal: float) -> dict[str, Any]:
    return {"valence": valence, "arousal": arousal, "mood": mood_of((valence, arousal))}


def _hits(near: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    return {kind: [hit.to_json() for hit in hits] for kind, hits in near.items()}


def _model(explored: ExploredCatalog) -> dict[str, Any]:
    return {"model": explored.index.model.model_dump()}


def _json(request: Request, content: Any) -> Response:
    """Compact JSON, gzipped where that pays and the client takes it."""
    body = json.dumps(content, separators=(",", ":")).encode()
    headers = _PRIVATE | {"Vary": "Accept-Encoding"}
    if len(body) >= _GZIP_FROM and "gzip" in request.headers.get("accept-encoding", ""):
        body, headers = gzip.compress(body, 4, mtime=0), headers | {"Content-Encoding": "gzip"}
    return Response(body, headers=headers, media_type="application/json")

"""POST /v1/annotate: a handful of items, answered at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.serving.access import ANNOTATE, services_of
from mmva_platform.serving.keys import Caller
from mmva_platform.serving.metrics import Metrics
from mmva_platform.serving.openapi import takes
from mmva_platform.serving.schemas import AnnotateIn, AnnotateOut
from mmva_platform.serving.services import ApiError, ItemRequest, Row, Services, busy
from mmva_platform.serving.uploads import read_items
from mmva_platform.settings import ServingSettings

router = APIRouter()

_FORM = {
    "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
    "caption": {"type": "array", "items": {"type": "string"}},
    "embeddings": {"type": "string", "enum": ["true", "false"]},
}


class Admission:
    """How many items are in work, all together and of each key: what is too much is told at once, not queued."""

    def __init__(self, settings: ServingSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._all = 0
        self._own: Counter[str] = Counter()

    @contextmanager
    def enter(self, caller: str, items: int) -> Iterator[None]:
        """Items in work for the length of a block. ApiError 429 or 503 if they are too many."""
        if self._own[caller] and self._own[caller] + items > self._settings.max_in_flight_per_key:
            self._metrics.shed("key")
            raise ApiError(429, "too-many-items", "this key has too many items in work", 1.0)
        if self._all and self._all + items > self._settings.max_in_flight:
            self._metrics.shed("items")
            raise busy("too many items are in work")
        self._count(caller, items)
        try:
            yield
        finally:
            self._count(caller, -items)

    def _count(self, caller: str, items: int) -> None:
        self._all += items
        self._own[caller] += items
        if not self._own[caller]:
            del self._own[caller]
        self._metrics.in_flight(self._all)


@router.post(
    "/v1/annotate",
    response_model=AnnotateOut,
    response_model_exclude_unset=True,
    openapi_extra=takes(AnnotateIn, _FORM),
)
async def annotate(request: Request, caller: Annotated[Caller, Depends(ANNOTATE)]) -> dict[str, Any]:
    """Points of items by URI or caption (JSON), or of uploads (a form). An item's error is its own."""
    services = services_of(request)
    items, embeddings = await read_items(request, services.settings.serving.max_items)
    model, rows = await annotated(request, services, caller.name, items)
    if not embeddings:
        rows = [{name: value for name, value in row.items() if name != "embedding"} for row in rows]
    return {"model": model.model_dump(), "items": rows}


async def annotated(
    request: Request, services: Services, caller: str, items: list[ItemRequest]
) -> tuple[ModelInfo, list[Row]]:
    """Items through the model, admitted and counted."""
    admission: Admission = request.app.state.admission
    metrics: Metrics = request.app.state.metrics
    with admission.enter(caller, len(items)):
        answers = await services.models.annotate(items)
    for row in answers.rows:
        known = row.get("modality") in {"image", "music", "caption", "video"}
        metrics.item(row["modality"] if known else "unknown", row.get("error", {}).get("code", ""))
    return answers.model, answers.rows

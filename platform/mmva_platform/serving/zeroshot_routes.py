"""POST /v1/music-prompt and /v1/summarize: points and curves by the replicas, the rest from mmva.zeroshot."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from mmva.affect import mood
from mmva.media.windows import WINDOW_S
from mmva.modalities import AXES
from mmva.zeroshot.prompt_bank import TEMPLATES
from mmva.zeroshot.prompts import PromptBank, fill
from mmva.zeroshot.summary import Segment, choose_segments
from mmva_platform.serving.access import ANNOTATE, services_of
from mmva_platform.serving.items import annotated
from mmva_platform.serving.keys import Caller
from mmva_platform.serving.openapi import takes
from mmva_platform.serving.schemas import PromptIn, PromptOut, SummaryIn, SummaryOut
from mmva_platform.serving.search_routes import UPLOAD_FORM, annotation_uri, checked_row, refuse_other_model
from mmva_platform.serving.services import ApiError, ItemRequest, Row, Services
from mmva_platform.serving.uploads import read_query, read_video

router = APIRouter()


@router.post("/v1/music-prompt", response_model=PromptOut, openapi_extra=takes(PromptIn, UPLOAD_FORM))
async def music_prompt(request: Request, caller: Annotated[Caller, Depends(ANNOTATE)]) -> dict[str, Any]:
    """What music fits, in the words that a text-to-music generator takes."""
    services = services_of(request)
    body, item = await read_query(request, PromptIn)
    bank, model = await _bank(request, services, caller.name)
    point = body.point
    if item is not None:
        answered, (row,) = await annotated(request, services, caller.name, [item])
        checked_row(row)
        point, model = (row["valence"], row["arousal"]), answered.model_dump()
    assert point is not None
    prompt = bank.prompt(point)
    return {
        "model": model,
        "query": dict(zip(AXES, point, strict=True)),
        "prompt": prompt.text,
        "details": prompt.to_json(),
    }


@router.post("/v1/summarize", response_model=SummaryOut, openapi_extra=takes(SummaryIn, UPLOAD_FORM))
async def summarize(request: Request, caller: Annotated[Caller, Depends(ANNOTATE)]) -> dict[str, Any]:
    """The moments of a video in which its mood changes; `mmva summarize` cuts them into a clip, too."""
    services = services_of(request)
    body, item = await read_video(request)
    index = None
    if body.annotation is not None:
        index = await run_in_threadpool(services.open_index, annotation_uri(services, body.annotation))
    model, (row,) = await annotated(request, services, caller.name, [item])
    checked_row(row)
    if index is not None:
        refuse_other_model(index.model, model.digest)
    curve = row["windows"] or [{"start_s": 0.0, "valence": row["valence"], "arousal": row["arousal"]}]
    duration_s = row["duration_s"] or WINDOW_S
    time_s_W = np.array([point["start_s"] + WINDOW_S / 2 for point in curve])
    va_W2 = np.array([[point[axis] for axis in AXES] for point in curve])
    segments = [
        _segment(segment, time_s_W, va_W2, index)
        for segment in choose_segments(time_s_W, va_W2, duration_s, body.seconds)
    ]
    return {"model": model.model_dump(), "duration_s": duration_s, "segments": segments, "curve": curve}


async def _bank(request: Request, services: Services, caller: str) -> tuple[PromptBank, dict[str, Any]]:
    """The templates where the model that answers now places them; asked once a model."""
    now = await services.models.current()
    known: dict[str, PromptBank] = request.app.state.banks
    if now is None or now.digest not in known:
        texts = [fill(template, template.home)["text"] for template in TEMPLATES]
        items = [ItemRequest(id="", uri=None, modality="caption", caption=text, data=None) for text in texts]
        now, rows = await annotated(request, services, caller, items)
        known.clear()
        known[now.digest] = PromptBank([_point(row) for row in rows])
    return known[now.digest], now.model_dump()


def _point(row: Row) -> list[float]:
    if row["status"] == "error":
        raise ApiError(409, "no-caption-tower", f"music prompts need a caption tower: {row['error']['message']}")
    return [row[axis] for axis in AXES]


def _segment(segment: Segment, time_s_W: NDArray[np.float64], va_W2: NDArray[np.float64], index: Any) -> dict[str, Any]:
    inside_W = (time_s_W >= segment.start_s) & (time_s_W <= segment.end_s)
    middle = int(np.abs(time_s_W - (segment.start_s + segment.end_s) / 2).argmin())
    va_2 = va_W2[inside_W if inside_W.any() else [middle]].mean(axis=0)
    hits = index.search(va_2, top=1, modality="music") if index is not None else []
    return {
        "start_s": segment.start_s,
        "end_s": segment.end_s,
        "change": segment.change,
        **dict(zip(AXES, va_2.tolist(), strict=True)),
        "mood": str(mood(va_2)),
        "music": hits[0].to_json() if hits else None,
    }

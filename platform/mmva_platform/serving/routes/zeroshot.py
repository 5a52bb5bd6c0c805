"""POST /v1/music-prompt and /v1/summarize: replicas compute points and curves, mmva.zeroshot does the rest."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Form, UploadFile
from pydantic import Json

from mmva.affect import mood
from mmva.media.windows import WINDOW_S
from mmva.modalities import AXES
from mmva.zeroshot.prompts import TEMPLATES, PromptBank, fill
from mmva.zeroshot.summary import choose_segments, point_of
from mmva_platform.serving.auth import ANNOTATE, Caller
from mmva_platform.serving.context import Context, ContextDep, ItemRequest, Row
from mmva_platform.serving.errors import ApiError
from mmva_platform.serving.routes.annotate import item_of_query, item_of_upload, refuse_item
from mmva_platform.serving.routes.search import annotation_uri, checked_row, refuse_other_model
from mmva_platform.serving.schemas import PromptOut, QueryIn, SummaryIn, SummaryOut

router = APIRouter()

CallerDep = Annotated[Caller, Depends(ANNOTATE)]
QueryDep = Annotated[Json[SummaryIn] | None, Form(description="the body as JSON")]


@router.post("/v1/music-prompt", response_model=PromptOut)
async def music_prompt(body: QueryIn, context: ContextDep, caller: CallerDep) -> dict[str, Any]:
    """A prompt for a text-to-music generator that fits a text, picture, music or point."""
    return await _prompt(context, caller, body.point, item_of_query(body))


@router.post("/v1/music-prompt/upload", response_model=PromptOut)
async def music_prompt_of_upload(file: UploadFile, context: ContextDep, caller: CallerDep) -> dict[str, Any]:
    """The same for an upload, as a form."""
    return await _prompt(context, caller, None, await item_of_upload(file, "query"))


@router.post("/v1/summarize", response_model=SummaryOut)
async def summarize(body: SummaryIn, context: ContextDep, caller: CallerDep) -> dict[str, Any]:
    """The segments of a video in which its mood changes; `mmva summarize` also cuts them into a clip."""
    if body.uri is None:
        raise ApiError(422, "invalid", "uri: missing")
    item = ItemRequest(id="video", uri=body.uri, modality="video", caption=None, data=None)
    return await _summary(context, caller, body, item)


@router.post("/v1/summarize/upload", response_model=SummaryOut)
async def summarize_upload(
    file: UploadFile, context: ContextDep, caller: CallerDep, query: QueryDep = None
) -> dict[str, Any]:
    """The same for an upload, as a form."""
    body = query or SummaryIn()
    refuse_item(body)
    return await _summary(context, caller, body, await item_of_upload(file, "video", "video"))


async def _prompt(
    context: Context, caller: Caller, point: tuple[float, float] | None, item: ItemRequest | None
) -> dict[str, Any]:
    bank, model = await _bank(context, caller.name)
    if item is not None:
        answers = await context.annotated(caller.name, [item])
        row = checked_row(answers.rows[0])
        point, model = (row["valence"], row["arousal"]), answers.model.model_dump()
    assert point is not None
    prompt = bank.prompt(point)
    query = dict(zip(AXES, point, strict=True))
    return {"model": model, "query": query, "prompt": prompt.text, "details": prompt.to_json()}


async def _bank(context: Context, caller: str) -> tuple[PromptBank, dict[str, Any]]:
    """The templates with their points by the current model, computed once per model."""
    now, known = context.models.known, context.banks
    if now is None or now.digest not in known:
        texts = [fill(template, template.home)["text"] for template in TEMPLATES]
        items = [ItemRequest(id="", uri=None, modality="caption", caption=text, data=None) for text in texts]
        answers = await context.annotated(caller, items)
        now = answers.model
        known.clear()
        known[now.digest] = PromptBank([_point(row) for row in answers.rows])
    return known[now.digest], now.model_dump()


def _point(row: Row) -> list[float]:
    if row["status"] == "error":
        raise ApiError(409, "no-caption-tower", f"music prompts need a caption tower: {row['error']['message']}")
    return [row[axis] for axis in AXES]


async def _summary(context: Context, caller: Caller, body: SummaryIn, item: ItemRequest) -> dict[str, Any]:
    index = None
    if body.annotation is not None:
        index = await context.index_threads(context.open_index, annotation_uri(context, body.annotation))
    answers = await context.annotated(caller.name, [item])
    row = checked_row(answers.rows[0])
    if index is not None:
        refuse_other_model(index.model, answers.model.digest)
    curve = row["windows"] or [{"start_s": 0.0, "valence": row["valence"], "arousal": row["arousal"]}]
    duration_s = row["duration_s"] or WINDOW_S
    time_s_W = np.array([point["start_s"] + WINDOW_S / 2 for point in curve])
    va_W2 = np.array([[point[axis] for axis in AXES] for point in curve])
    segments = []
    for segment in choose_segments(time_s_W, va_W2, duration_s, body.seconds):
        va_2, _ = point_of(segment, time_s_W, va_W2)
        hits = index.search(va_2, top=1, modality="music") if index is not None else []
        point = dict(zip(AXES, va_2.tolist(), strict=True))
        segments.append(asdict(segment) | point | {"mood": str(mood(va_2)), "music": hits[0] if hits else None})
    return {"model": answers.model.model_dump(), "duration_s": duration_s, "segments": segments, "curve": curve}

"""The page's world: a published annotation, the real application, and a model that is asked in process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from mmva.errors import MediaError
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.search import load_predictor, query_point
from mmva_platform.search.explored import ExploredCatalog
from mmva_platform.serving.context import Answers, ItemRequest
from mmva_platform.serving.jobs.queue import Job, JobSpec, State
from mmva_platform.settings import Settings

from .serving_world import World, make_world

KEY = "worker-key"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> & {{7*7}}"
PROGRESS: dict[str, dict[str, Any]] = {
    "s3://films/": {"items_done": 40, "items": 160, "eta_s": 95.0},
    HOSTILE: {"items_done": 1, "items": 3, "eta_s": None},
}


def explorer_world(
    annotations: dict[str, str], roots: Sequence[str | Path], bundle: Path, settings: Settings, home: Path
) -> World:
    """What the page talks to; queries go through the bundle."""
    model = cache(lambda: load_predictor(str(bundle), settings))

    async def annotate(items: list[ItemRequest]) -> Answers:
        info = ModelInfo(name="mmva", version=None, digest=str(model().digest))
        return Answers(info, [_row(model(), item) for item in items])

    world = make_world(
        home,
        annotate,
        model=None,
        open_index=cache(lambda uri: ExploredCatalog.open(uri, settings)),
        progress=_progress,
        settings=settings,
        annotations=annotations,
        roots=tuple(map(str, roots)),
    )
    for catalog, state, message in ((HOSTILE, "failed", HOSTILE), ("s3://films/", "running", "")):
        add_job(world, catalog, str(home / f"out-{state}"), state, message)
    return world


def add_job(world: World, catalog: str, out: str, state: State, message: str = "") -> Job:
    """A job that has come to a state."""
    job, _ = world.jobs.submit(JobSpec(catalog=catalog, out=out, model="models:/mmva/1"), "worker")
    job = job.changed(state, message=message)
    assert world.jobs.put(job)
    return job


def app_of(world: World) -> ASGIApp:
    """The application alone."""
    return world.client.app


def _progress(job: Job) -> dict[str, Any] | None:
    known = PROGRESS.get(job.spec.catalog)
    if known is None:
        return None
    zero = {"shards": 4, "shards_done": 1, "annotated": 1, "quarantined": 0, "causes": {}, "published": False}
    return {**zero, **known, "model_version": "1", "model_digest": "d" * 64}


def _row(model: Any, item: ItemRequest) -> dict[str, Any]:
    content = item["data"] if item["data"] is not None else item["caption"]
    stamp = {"id": item["id"], "modality": item["modality"], "model_version": None, "model_digest": str(model.digest)}
    try:
        valence, arousal = query_point(model, str(item["modality"]), content or "")
    except MediaError as error:
        problem = {"code": error.code, "stage": error.stage, "message": str(error)}
        return {**stamp, "status": "error", "error": problem}
    return {**stamp, "status": "ok", "valence": float(valence), "arousal": float(arousal)}

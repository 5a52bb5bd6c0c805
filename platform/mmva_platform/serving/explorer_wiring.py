"""What the explorer shows of this server: its named annotations, its model for what is dropped in, its jobs."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Depends

from mmva.errors import MediaError
from mmva.modalities import Modality
from mmva_platform.serving.access import READ
from mmva_platform.serving.explorer import ExplorerSources, JobRow, Placed, explorer_router
from mmva_platform.serving.items import Admission
from mmva_platform.serving.jobs import Job
from mmva_platform.serving.progress_of_jobs import ProgressReader
from mmva_platform.serving.services import ItemRequest, Services

_JOBS_SHOWN: Final = 20
_CALLER: Final = "explorer"  # all that the page places counts as one key's items


def explorer_of(services: Services, admission: Admission, progress: ProgressReader) -> APIRouter:
    """The page and its data, which ask for the scope `read`."""

    async def place(modality: Modality, content: bytes | str) -> Placed:
        item = ItemRequest(
            id="query",
            uri=None,
            modality=modality,
            caption=content if isinstance(content, str) else None,
            data=content if isinstance(content, bytes) else None,
        )
        with admission.enter(_CALLER, 1):
            (row,) = (await services.models.annotate([item])).rows
        if row["status"] == "error":
            raise MediaError(row["error"]["code"], row["error"]["message"])
        return Placed(row["valence"], row["arousal"], row["model_digest"])

    def jobs() -> list[JobRow]:
        newest = list(reversed(services.jobs.jobs()))[:_JOBS_SHOWN]
        return [job_row(job, progress(job)) for job in newest]

    sources = ExplorerSources(
        annotations=lambda: services.settings.serving.annotations,
        open_index=services.open_index,
        roots=services.roots,
        storage=services.settings.storage,
        place=place,
        jobs=jobs,
    )
    return explorer_router(sources, Depends(READ))


def job_row(job: Job, progress: dict[str, Any] | None) -> JobRow:
    """A job as the page lists it."""
    known = progress or {}
    return JobRow(
        id=job.id,
        state=job.state,
        catalog=job.spec.catalog,
        done=known.get("items_done", 0),
        items=known.get("items"),
        eta_s=known.get("eta_s"),
        message=job.last.message or None,
    )

"""/v1/annotation-jobs: annotates catalogs on the bulk cluster."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import HTMLResponse

from mmva_platform.annotation.catalog.roots import AllowedRoots, normalised_root
from mmva_platform.serving.auth import ANNOTATE, READ, Caller
from mmva_platform.serving.context import Context, ContextDep
from mmva_platform.serving.errors import ApiError
from mmva_platform.serving.jobs.queue import Job, JobSpec
from mmva_platform.serving.schemas import JobIn, JobOut, JobsOut

PREFIX: Final = "/v1/annotation-jobs"
router = APIRouter(prefix=PREFIX)

JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
CallerDep = Annotated[Caller, Depends(ANNOTATE)]


@router.post("", response_model=JobOut, status_code=202)
async def submit(
    body: JobIn, request: Request, response: Response, context: ContextDep, caller: CallerDep
) -> dict[str, Any]:
    """Queue a catalog. Submitting it again returns the same job; a cancelled or failed job continues where it was."""
    settings = context.settings.serving
    catalog = _below(body.catalog, settings.roots, "catalog", "serving.roots")
    out = _below(body.out, settings.out_roots, "out", "serving.out_roots")
    spec = JobSpec(catalog=catalog, out=out, model=body.model or settings.model, max_errors=body.max_errors)
    job, is_new = await context.job_threads(context.jobs.submit, spec, caller.name)
    response.status_code = 202 if is_new else 200
    response.headers["Location"] = f"{request.scope.get('root_path', '')}{PREFIX}/{job.id}"
    return await _with_progress(context, job)


@router.get("", response_model=JobsOut, dependencies=[Depends(READ)])
async def jobs(
    context: ContextDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    progress: Annotated[bool, Query(description="return each job's progress")] = False,  # noqa: FBT002 - a query parameter
) -> dict[str, Any]:
    """A page of jobs, the newest first."""
    known = await context.job_threads(context.jobs.jobs)
    page = known[::-1][offset : offset + limit]
    rows = await asyncio.gather(*(_with_progress(context, job) for job in page)) if progress else map(_json, page)
    return {"jobs": list(rows), "total": len(known)}


@router.get("/{job_id}", response_model=JobOut, dependencies=[Depends(READ)])
async def status(job_id: JobId, context: ContextDep) -> dict[str, Any]:
    """A job's state, progress and estimated time."""
    return await _with_progress(context, await context.job_threads(context.jobs.get, job_id))


@router.get("/{job_id}/report", response_class=HTMLResponse, dependencies=[Depends(READ)])
async def report(job_id: JobId, context: ContextDep) -> HTMLResponse:
    """The report of a published annotation, as one HTML page without scripts."""
    job = await context.job_threads(context.jobs.get, job_id)
    if not await context.job_threads(context.jobs.is_published, job):
        text = f"job {job_id} is {job.state}; its report is available after publication"
        raise ApiError(409, "not-published", text, 5.0)
    return HTMLResponse(await context.report_threads(context.report, job.spec.out))


@router.delete("/{job_id}", response_model=JobOut)
async def cancel(job_id: JobId, context: ContextDep, caller: CallerDep) -> dict[str, Any]:
    """Cancel a job; committed shards stay, running ones are abandoned. Only for its owner and admins."""
    job = await context.job_threads(context.jobs.get, job_id)
    if job.owner != caller.name and "admin" not in caller.scopes:
        raise ApiError(403, "forbidden", f"job {job_id} belongs to another key; an admin may cancel it")
    return await _with_progress(context, await context.job_threads(context.jobs.cancel, job_id))


async def _with_progress(context: Context, job: Job) -> dict[str, Any]:
    return _json(job) | {"progress": await context.job_threads(context.progress, job)}


def _json(job: Job) -> dict[str, Any]:
    own = job.model_dump(include={"id", "state", "owner", "submitted_at", "changed_at"})
    return own | job.spec.model_dump() | {"message": job.message or None}


def _below(uri: str, roots: tuple[str, ...], field: str, setting: str) -> str:
    """The normalised place if it is a root or below one. Raises ApiError 403 otherwise."""
    if "://" not in uri and not uri.startswith("/"):
        raise ApiError(422, "invalid", f"{field}: must be an absolute path, file:// or s3://bucket/prefix")
    place = normalised_root(uri)
    if not AllowedRoots(roots).allow(place) and place not in {normalised_root(root) for root in roots}:
        raise ApiError(403, "outside-roots", f"{field}: not below a root of {setting}")
    return place

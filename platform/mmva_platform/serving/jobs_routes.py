"""/v1/annotation-jobs: catalogs, annotated by the bulk engine on the cluster. Blocking storage, so plain functions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import HTMLResponse

from mmva_platform.annotation.roots import AllowedRoots, normalised_root
from mmva_platform.serving.access import ANNOTATE, READ, services_of
from mmva_platform.serving.jobs import Job, JobSpec, job_json
from mmva_platform.serving.keys import Caller
from mmva_platform.serving.progress_of_jobs import ProgressReader
from mmva_platform.serving.schemas import JobIn, JobOut, JobsOut
from mmva_platform.serving.services import ApiError, Services

router = APIRouter(prefix="/v1/annotation-jobs")

JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]


@router.post("", response_model=JobOut, status_code=202)
def submit(body: JobIn, request: Request, response: Response, caller: Annotated[Caller, Depends(ANNOTATE)]) -> Any:
    """Put a catalog into the queue. The same again is the same job; a cancelled or failed one goes on where it was."""
    services = services_of(request)
    settings = services.settings.serving
    catalog = _below(body.catalog, settings.roots, "catalog", "serving.roots")
    out = _below(body.out, settings.out_roots, "out", "serving.out_roots")
    spec = JobSpec(catalog=catalog, out=out, model=body.model or settings.model, max_errors=body.max_errors)
    job, is_new = services.jobs.submit(spec, caller.name)
    response.status_code = 202 if is_new else 200
    response.headers["Location"] = f"{router.prefix}/{job.id}"
    return job_json(job) | {"progress": _progress(request, job)}


@router.get("", response_model=JobsOut, dependencies=[Depends(READ)])
def jobs(request: Request) -> dict[str, Any]:
    """All jobs, the last submitted first, without their progress."""
    return {"jobs": [job_json(job) for job in reversed(services_of(request).jobs.jobs())]}


@router.get("/{job_id}", response_model=JobOut, dependencies=[Depends(READ)])
def status(job_id: JobId, request: Request) -> dict[str, Any]:
    """A job's state, progress and estimated time, as its run directory tells them."""
    job = services_of(request).jobs.get(job_id)
    return job_json(job) | {"progress": _progress(request, job)}


@router.get("/{job_id}/report", response_class=HTMLResponse, dependencies=[Depends(READ)])
def report(job_id: JobId, request: Request) -> HTMLResponse:
    """The report of a published annotation, one page without scripts."""
    services = services_of(request)
    job = services.jobs.get(job_id)
    if not services.jobs.is_published(job):
        raise ApiError(
            409, "not-published", f"job {job_id} is {job.state}: there is a report once all is published", 5.0
        )
    return HTMLResponse(services.report(job.spec.out))


@router.delete("/{job_id}", response_model=JobOut)
def cancel(job_id: JobId, request: Request, caller: Annotated[Caller, Depends(ANNOTATE)]) -> dict[str, Any]:
    """Cancel a job: whole shards that are committed stay, those in work are given up. By its owner, or an admin."""
    services: Services = services_of(request)
    job = services.jobs.get(job_id)
    if job.owner != caller.name and "admin" not in caller.scopes:
        raise ApiError(403, "forbidden", f"job {job_id} belongs to another key; an admin may cancel it")
    job = services.jobs.cancel(job_id, caller.name)
    return job_json(job) | {"progress": _progress(request, job)}


def _progress(request: Request, job: Job) -> dict[str, Any] | None:
    reader: ProgressReader = request.app.state.progress
    return reader(job)


def _below(uri: str, roots: tuple[str, ...], field: str, setting: str) -> str:
    """The place itself if it is a root or below one. ApiError 403 otherwise."""
    if "://" not in uri and not uri.startswith("/"):
        raise ApiError(422, "invalid", f"{field}: must be an absolute path, file:// or s3://bucket/prefix")
    place = normalised_root(uri)
    if not AllowedRoots(roots).allow(place) and place not in {normalised_root(root) for root in roots}:
        raise ApiError(403, "outside-roots", f"{field}: not below a root of {setting}")
    return place

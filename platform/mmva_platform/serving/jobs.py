"""The queue of annotation jobs, in storage: a job is a run directory, and a log of what was asked of it.

`<jobs>/<id>/0001.json`, 0002.json and so on, each put once: whoever puts the next number decided what happened next.
The id is that of the output, so there is one job a run directory. How far it is stands in that directory alone; a
queue that is lost loses the order of waiting jobs, never work.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import Field

from mmva_platform.annotation.roots import normalised_root
from mmva_platform.annotation.table import is_published
from mmva_platform.serving.services import ApiError
from mmva_platform.settings import Config, ServingSettings, StorageSettings
from mmva_platform.storage import Storage, open_storage

What = Literal["submitted", "started", "finished", "failed", "cancelled"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
_STATES: Final[dict[What, State]] = {
    "submitted": "queued",
    "started": "running",
    "finished": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}
_MOST_STARTS: Final = 5


class JobSpec(Config):
    """What is to be annotated, with what, and where to."""

    catalog: str
    out: str
    model: str
    max_errors: str | None = None


class Event(Config):
    """One entry of a job's log."""

    what: What
    at: datetime
    by: str = Field("", description="name of the key; empty for the runner")
    spec: JobSpec | None = Field(None, description="of a submission")
    shards_done: int = Field(0, description="of a start: what was committed before it")
    message: str = Field("", description="of a failure")


@dataclass(frozen=True)
class Job:
    """A job as its log tells it."""

    id: str
    events: tuple[Event, ...]

    @property
    def submission(self) -> Event:
        """The last time it was asked for."""
        return next(event for event in reversed(self.events) if event.what == "submitted")

    @property
    def spec(self) -> JobSpec:
        """What was asked for last."""
        spec = self.submission.spec
        assert spec is not None
        return spec

    @property
    def owner(self) -> str:
        """Name of the key that asked for it."""
        return self.submission.by

    @property
    def last(self) -> Event:
        """What happened last."""
        return self.events[-1]

    @property
    def state(self) -> State:
        """Where it stands. "running" is what was started and not ended, also if its runner died meanwhile."""
        return _STATES[self.last.what]

    @property
    def started(self) -> Event | None:
        """Its last start, if it was started."""
        return next((event for event in reversed(self.events) if event.what == "started"), None)

    @property
    def starts(self) -> int:
        """How often it was started since it was asked for."""
        last = len(self.events) - 1 - self.events[::-1].index(self.submission)
        return sum(1 for event in self.events[last:] if event.what == "started")

    @property
    def worn_out(self) -> bool:
        """Whether it was started so often that another time would not help."""
        return self.starts >= _MOST_STARTS


class JobQueue:
    """Jobs of one place; any number of processes may hold one. Blocking calls."""

    def __init__(self, uri: str, serving: ServingSettings, settings: StorageSettings) -> None:
        self._storage: Storage = open_storage(uri, settings)
        self._serving, self._settings = serving, settings
        self._events: dict[str, Event] = {}
        self._lock = threading.Lock()

    def submit(self, spec: JobSpec, by: str) -> tuple[Job, bool]:
        """Put a job into the queue; the job, and whether it is new there.

        The same job again is the same job: what waits or runs is left alone, what was cancelled or failed goes on from
        its run directory.

        Raises:
            ApiError: 409 if the output belongs to another job, 429 if too many jobs wait.
        """
        spec = spec.model_copy(update={"out": normalised_root(spec.out)})
        name = job_id(spec.out)
        jobs = {job.id: job for job in self.jobs()}
        known = jobs.get(name)
        if known is not None:
            if (known.spec.catalog, known.spec.model) != (spec.catalog, spec.model):
                text = f"{spec.out}: another job writes there (catalog {known.spec.catalog}, model {known.spec.model})"
                raise ApiError(409, "output-taken", text)
            if known.state in {"queued", "running", "done"}:
                return known, False
        self._check_room(jobs.values(), by)
        event = Event(what="submitted", at=_now(), by=by, spec=spec)
        if not self._put(name, len(known.events) if known else 0, event):
            return self.get(name), False  # somebody else was first, with the same output
        return self.get(name), True

    def cancel(self, name: str, by: str) -> Job:
        """Cancel a job that waits or runs; what is committed stays. Others are left as they are."""
        while (job := self.get(name)).state in {"queued", "running"}:
            self.append(job, Event(what="cancelled", at=_now(), by=by))
        return job

    def append(self, job: Job, event: Event) -> bool:
        """Put what happens next to a job; False if something else happened first."""
        return self._put(job.id, len(job.events), event)

    def get(self, name: str) -> Job:
        """A job. Raises ApiError 404."""
        found = self._read(name)
        if name not in found:
            raise ApiError(404, "no-such-job", f"there is no job {name!r}")
        return found[name]

    def jobs(self) -> list[Job]:
        """All jobs, by the time they were last asked for."""
        return sorted(self._read().values(), key=lambda job: job.submission.at)

    def states(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        counts = Counter(job.state for job in self._read().values())
        return {state: counts[state] for state in _STATES.values()}

    def is_published(self, job: Job) -> bool:
        """Whether a job's run directory holds a published annotation."""
        return is_published(open_storage(job.spec.out, self._settings), 0)

    def _check_room(self, jobs: Iterable[Job], by: str) -> None:
        waiting = [job for job in jobs if job.state == "queued"]
        own = sum(1 for job in waiting if job.owner == by)
        if own >= self._serving.max_queued_jobs_per_key:
            raise ApiError(429, "too-many-jobs", f"{own} jobs of this key wait already", 60.0)
        if len(waiting) >= self._serving.max_queued_jobs:
            raise ApiError(429, "too-many-jobs", f"{len(waiting)} jobs wait already", 60.0)

    def _put(self, name: str, number: int, event: Event) -> bool:
        return self._storage.put_if_absent(f"{name}/{number + 1:04d}.json", event.model_dump_json(indent=1).encode())

    def _read(self, name: str | None = None) -> dict[str, Job]:
        """Logs as they are now; an event is read once, because it never changes."""
        paths = [entry.path for entry in self._storage.list(f"{name}/" if name else "") if entry.path.endswith(".json")]
        with self._lock:
            for path in paths:
                if path not in self._events:
                    self._events[path] = Event.model_validate_json(self._storage.read(path))
            found: dict[str, list[Event]] = {}
            for path in paths:
                found.setdefault(path.partition("/")[0], []).append(self._events[path])
        return {name: Job(name, tuple(events)) for name, events in found.items()}


def next_job(jobs: Sequence[Job], running: Sequence[str]) -> Job | None:
    """The job to start next: of the key with the fewest running jobs, then of the one served longest ago, its oldest.

    Args:
        jobs: All jobs.
        running: Ids of those that the runner runs now.
    """
    waiting = [job for job in jobs if job.state in {"queued", "running"} and job.id not in running]
    busy = Counter(job.owner for job in jobs if job.id in running)
    served: dict[str, datetime] = {}
    for job in jobs:
        if job.started is not None:
            served[job.owner] = max(served.get(job.owner, job.started.at), job.started.at)
    never = datetime.min.replace(tzinfo=UTC)
    return min(
        waiting,
        key=lambda job: (
            job.state != "running",  # cut short by a restart: it had its turn already
            busy[job.owner],
            served.get(job.owner, never),
            job.submission.at,
        ),
        default=None,
    )


def job_id(out: str) -> str:
    """Id of the job that writes to a run directory."""
    return hashlib.sha256(out.encode()).hexdigest()[:16]


def _now() -> datetime:
    return datetime.now(UTC)


def started(shards_done: int) -> Event:
    """The event of a start."""
    return Event(what="started", at=_now(), shards_done=shards_done)


def ended(error: str | None) -> Event:
    """The event of an end."""
    return Event(what="failed" if error else "finished", at=_now(), message=error or "")


def job_json(job: Job) -> dict[str, Any]:
    """A job without its progress."""
    return {
        "id": job.id,
        "state": job.state,
        "owner": job.owner,
        **job.spec.model_dump(),
        "submitted_at": job.submission.at,
        "changed_at": job.last.at,
        "message": job.last.message or None,
    }

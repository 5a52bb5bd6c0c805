"""The queue of annotation jobs, in storage; any number of processes may use it at once.

`<jobs>/<id>/0001.json`, 0002.json and so on are each written once and never changed; the highest is the current state
of the job. The process that writes the next number decides the next state. The id comes from the output, so a run
directory has one job. Progress is only in that directory: losing the queue loses the order of waiting jobs, never work.
Files of another form, or that this version cannot read, are ignored.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmva_platform.annotation.catalog.roots import normalised_root
from mmva_platform.annotation.table.delta import is_published
from mmva_platform.serving.errors import ApiError
from mmva_platform.settings import ServingSettings, StorageSettings
from mmva_platform.storage import Storage, StorageNotFound, open_storage

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: Final[tuple[State, ...]] = get_args(State)
_FILE: Final = re.compile(r"([0-9a-f]{16})/(\d{4,})\.json")
_THREADS: Final = 16
_REMEMBERED: Final = 10_000


class _Stored(BaseModel):
    """Reading ignores unknown fields, which another version of the software may have added."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class JobSpec(_Stored):
    """A catalog, its output and its model."""

    catalog: str
    out: str
    model: str
    max_errors: str | None = None


class Start(_Stored):
    """A start of a job on the bulk cluster."""

    at: datetime
    submission_id: str
    shards_done: int = Field(description="committed before it")
    fruitless: int = Field(0, description="earlier starts in a row without a new committed shard")


class Job(_Stored):
    """The current state of a job."""

    id: str
    number: int = Field(description="of its file")
    spec: JobSpec
    owner: str = Field(description="name of the key that last submitted it")
    submitted_at: datetime
    changed_at: datetime
    state: State = "queued"
    message: str = Field("", description="of a failure")
    start: Start | None = Field(None, description="the last one")

    def changed(self, state: State, **values: Any) -> Job:
        """The job's next state; `put` stores it."""
        more = {"number": self.number + 1, "state": state, "changed_at": _now(), **values}
        return self.model_copy(update=more)

    @property
    def active(self) -> bool:
        """Whether it is waiting or running."""
        return self.state in {"queued", "running"}


class JobQueue:
    """The jobs in one place. Calls block and are safe from any thread."""

    def __init__(self, uri: str, serving: ServingSettings, settings: StorageSettings) -> None:
        self._storage: Storage = open_storage(uri, settings)
        self._serving, self._settings = serving, settings
        self._read: dict[str, Job | None] = {}  # by path; files never change
        self._lock = threading.Lock()  # guards only the dictionary, and is never held during a request

    def submit(self, spec: JobSpec, by: str) -> tuple[Job, bool]:
        """Put a job into the queue; returns the job, and whether it was queued now.

        Submitting a job again does nothing while it waits or runs or if it is done; a cancelled or failed job continues
        from its run directory. Raises ApiError 409 if the output belongs to another job, or is inside or around
        another's; 429 if too many jobs wait.
        """
        spec = spec.model_copy(update={"out": normalised_root(spec.out)})
        jobs = self.jobs()
        name = job_id(spec.out)
        known = next((job for job in jobs if job.id == name), None)
        if known is not None:
            if (known.spec.catalog, known.spec.model) != (spec.catalog, spec.model):
                text = f"{spec.out}: another job writes there (catalog {known.spec.catalog}, model {known.spec.model})"
                raise ApiError(409, "output-taken", text)
            if known.state in {"queued", "running", "done"}:
                return known, False
        elif (other := nested(spec.out, jobs, self._serving.annotations.values())) is not None:
            raise ApiError(409, "output-taken", f"{spec.out}: inside or around {other}, which belongs to another job")
        self._check_room(jobs, by)
        now, number = _now(), known.number + 1 if known else 1
        job = Job(id=name, number=number, spec=spec, owner=by, submitted_at=now, changed_at=now)
        if not self.put(job):
            return self.get(name), False  # another caller was first, with the same output
        return job, True

    def cancel(self, name: str) -> Job:
        """Cancel a job that waits or runs; committed shards stay. Ended jobs do not change."""
        while (job := self.get(name)).active:
            cancelled = job.changed("cancelled")
            if self.put(cancelled):
                return cancelled
        return job

    def put(self, job: Job) -> bool:
        """Store a job's next state; False if another process stored one first."""
        path = f"{job.id}/{job.number:04d}.json"
        if not self._storage.put_if_absent(path, job.model_dump_json(indent=1).encode()):
            return False
        self._remember(path, job)
        return True

    def get(self, name: str) -> Job:
        """A job; one request, and another one if it has changed. Raises ApiError 404."""
        found = self._newest(f"{name}/")
        if name not in found:
            raise ApiError(404, "no-such-job", f"there is no job {name!r}")
        return found[name]

    def jobs(self) -> list[Job]:
        """All jobs, oldest first."""
        return sorted(self._newest("").values(), key=lambda job: (job.submitted_at, job.id))

    def is_published(self, job: Job) -> bool:
        """Whether a job's run directory holds a published annotation."""
        return is_published(open_storage(job.spec.out, self._settings), 0)

    def _newest(self, prefix: str) -> dict[str, Job]:
        """Jobs below a prefix by id, each from its highest readable file."""
        numbers: dict[str, list[int]] = {}
        for entry in self._storage.list(prefix):
            match = _FILE.fullmatch(entry.path)
            if match:
                numbers.setdefault(match[1], []).append(int(match[2]))
        with ThreadPoolExecutor(_THREADS) as pool:  # starts threads only as needed
            jobs = pool.map(self._newest_of, numbers, numbers.values())
            return {job.id: job for job in jobs if job is not None}

    def _newest_of(self, name: str, numbers: list[int]) -> Job | None:
        for number in sorted(numbers, reverse=True):
            job = self._parsed(name, number)
            if job is not None:
                return job.model_copy(update={"number": max(numbers)})  # so that the next number is free
        return None

    def _parsed(self, name: str, number: int) -> Job | None:
        path = f"{name}/{number:04d}.json"
        with self._lock:
            if path in self._read:
                return self._read[path]
        try:
            job = Job.model_validate_json(self._storage.read(path))
        except StorageNotFound:
            return None
        except ValidationError as error:
            logger.warning("jobs: %s cannot be read by this version (%s)", path, error.errors()[0]["msg"])
            job = None
        if job is not None and (job.id, job.number) != (name, number):
            logger.warning("jobs: %s holds another job than its name says", path)
            job = None
        self._remember(path, job)
        return job

    def _remember(self, path: str, job: Job | None) -> None:
        with self._lock:
            self._read[path] = job
            while len(self._read) > _REMEMBERED:
                del self._read[next(iter(self._read))]

    def _check_room(self, jobs: Iterable[Job], by: str) -> None:
        waiting = [job for job in jobs if job.state == "queued"]
        own = sum(1 for job in waiting if job.owner == by)
        if own >= self._serving.max_queued_jobs_per_key:
            raise ApiError(429, "too-many-jobs", f"{own} jobs of this key are waiting", 60.0)
        if len(waiting) >= self._serving.max_queued_jobs:
            raise ApiError(429, "too-many-jobs", f"{len(waiting)} jobs are waiting", 60.0)


def next_job(jobs: Sequence[Job]) -> Job | None:
    """The job to start next: the oldest of the key with the fewest running jobs, then of the key served longest ago."""
    waiting = [job for job in jobs if job.state == "queued"]
    running = Counter(job.owner for job in jobs if job.state == "running")
    served: dict[str, datetime] = {}
    for job in jobs:
        if job.start is not None:
            served[job.owner] = max(served.get(job.owner, job.start.at), job.start.at)
    never = datetime.min.replace(tzinfo=UTC)
    return min(
        waiting,
        key=lambda job: (running[job.owner], served.get(job.owner, never), job.submitted_at, job.id),
        default=None,
    )


def nested(out: str, jobs: Iterable[Job], annotations: Iterable[str] = ()) -> str | None:
    """A known output that is inside or around `out`; None if there is none."""
    known = [job.spec.out for job in jobs] + [normalised_root(uri) for uri in annotations]
    return next((one for one in known if f"{one}/".startswith(f"{out}/") != f"{out}/".startswith(f"{one}/")), None)


def count_states(jobs: Iterable[Job]) -> dict[str, int]:
    """Number of jobs in each state."""
    counts = Counter(job.state for job in jobs)
    return {state: counts[state] for state in STATES}


def job_id(out: str) -> str:
    """Id of the job that writes to a run directory."""
    return hashlib.sha256(out.encode()).hexdigest()[:16]


def _now() -> datetime:
    return datetime.now(UTC)

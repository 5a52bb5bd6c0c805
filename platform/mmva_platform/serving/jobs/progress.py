"""Progress and estimated end of a job, from its run directory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final

from mmva.errors import UsageError
from mmva_platform.annotation.table.commit import CommitRecord, committed_shards
from mmva_platform.annotation.table.status import RunStatus, status
from mmva_platform.serving.jobs.queue import Job, Start
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

_REMEMBERED: Final = 64
_FRESH_S: Final = 2.0  # how often a run directory is listed, for any number of clients


@dataclass
class _Run:
    """The last state of a run directory."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    commits: dict[str, CommitRecord] = field(default_factory=dict)
    status: RunStatus | None = None
    looked: float | None = None
    job: Job | None = None  # at that time


class ProgressReader:
    """Reads run directories. A job never waits for another one; callers of the same job share requests."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._lock = threading.Lock()  # guards only the dictionary

    def __call__(self, job: Job) -> dict[str, Any] | None:
        """Counts, and seconds left for a running job; None before there is a plan. Blocks."""
        with self._lock:
            run = self._runs.setdefault(job.spec.out, _Run())
            self._runs.move_to_end(job.spec.out)
            while len(self._runs) > _REMEMBERED:
                self._runs.popitem(last=False)
        with run.lock:
            published = run.status is not None and run.status.published
            # Read again if the job has changed, so that an ended job is not shown as unfinished.
            if not published and (run.looked is None or run.job != job or self._clock() - run.looked > _FRESH_S):
                try:
                    run.status = status(job.spec.out, self._settings, 0, run.commits)
                except UsageError:  # no plan yet
                    run.status = None
                run.looked, run.job = self._clock(), job
            return None if run.status is None else _progress(run.status, job)


def _progress(run: RunStatus, job: Job) -> dict[str, Any]:
    start = job.start if job.state == "running" else None
    return {
        "shards": run.shards,
        "shards_done": run.shards_done,
        "items": run.items,
        "items_done": run.totals.items,
        "annotated": run.totals.ok,
        "quarantined": run.totals.quarantined,
        "causes": run.totals.causes,
        "published": run.published,
        "eta_s": eta_s(start, run.shards_done, run.shards - run.shards_done, datetime.now(UTC)) if start else None,
        "model_version": run.model.version,
        "model_digest": run.model.digest,
    }


def shards_done(job: Job, settings: Settings) -> int:
    """Committed shards of a job's run directory."""
    return len(committed_shards(open_storage(job.spec.out, settings.storage), 0))


def eta_s(start: Start, done: int, left: int, now: datetime) -> float | None:
    """Seconds left at the pace since the start, None before the first shard; all shards take about the same time."""
    since_start = done - start.shards_done
    if since_start <= 0:
        return None
    return round(left * (now - start.at).total_seconds() / since_start, 1)

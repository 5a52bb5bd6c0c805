"""How far a job is and when it will be done, from its run directory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final

from mmva_platform.annotation.commit import CommitRecord, committed_shards, read_commits
from mmva_platform.annotation.plan import Plan, plan_file, read_plan
from mmva_platform.annotation.publish import add_up
from mmva_platform.annotation.table import is_published
from mmva_platform.serving.jobs.queue import Job, Start
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Storage, open_storage

_REMEMBERED: Final = 64
_FRESH_S: Final = 2.0  # however many pages look at a job, its run directory is listed so often


@dataclass
class _Run:
    """What is known of a run directory; plans and commits never change, so each is read once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    plan: Plan | None = None
    commits: dict[str, CommitRecord] = field(default_factory=dict)
    published: bool = False
    looked: float | None = None


class ProgressReader:
    """Reads run directories. A job never waits for another one; callers of the same job share its requests."""

    def __init__(self, settings: StorageSettings, clock: Callable[[], float] = monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._lock = threading.Lock()  # of the dictionary alone

    def __call__(self, job: Job) -> dict[str, Any] | None:
        """Counts, and seconds left for a job that runs; None before there is a plan. Blocking."""
        storage = open_storage(job.spec.out, self._settings)
        with self._lock:
            run = self._runs.setdefault(storage.uri, _Run())
            self._runs.move_to_end(storage.uri)
            while len(self._runs) > _REMEMBERED:
                self._runs.popitem(last=False)
        with run.lock:
            if not run.published and (run.looked is None or self._clock() - run.looked > _FRESH_S):
                _look(run, storage)
                run.looked = self._clock()
            return None if run.plan is None else _progress(run, run.plan, job)


def _look(run: _Run, storage: Storage) -> None:
    if run.plan is None:
        if not storage.exists(plan_file(0)):
            return
        run.plan = read_plan(storage)
    new = sorted(committed_shards(storage, 0) & set(run.plan.shards) - run.commits.keys())
    run.commits |= {record.shard: record for record in read_commits(storage, 0, new)}
    run.published = len(run.commits) == len(run.plan.shards) and is_published(storage, 0)


def _progress(run: _Run, plan: Plan, job: Job) -> dict[str, Any]:
    totals = add_up(run.commits.values())
    left = len(plan.shards) - len(run.commits)
    start = job.start if job.state == "running" else None
    return {
        "shards": len(plan.shards),
        "shards_done": len(run.commits),
        "items": plan.catalog.items,
        "items_done": totals.items,
        "annotated": totals.ok,
        "quarantined": totals.quarantined,
        "causes": totals.causes,
        "published": run.published,
        "eta_s": eta_s(start, len(run.commits), left, datetime.now(UTC)) if start else None,
        "model_version": plan.model.version,
        "model_digest": plan.model.digest,
    }


def shards_done(job: Job, settings: StorageSettings) -> int:
    """Committed shards of a job's run directory."""
    return len(committed_shards(open_storage(job.spec.out, settings), 0))


def eta_s(start: Start, done: int, left: int, now: datetime) -> float | None:
    """Seconds until the last shard at the pace since the start; None before the first one. Shards are cut by work."""
    since_start = done - start.shards_done
    if since_start <= 0:
        return None
    return round(left * (now - start.at).total_seconds() / since_start, 1)

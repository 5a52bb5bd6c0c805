"""How far a job is and when it will be done, from its run directory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, Final

from mmva_platform.annotation.commit import CommitRecord, committed_shards, read_commit
from mmva_platform.annotation.plan import Plan, plan_file, read_plan
from mmva_platform.annotation.publish import add_up
from mmva_platform.annotation.table import is_published
from mmva_platform.serving.jobs import Event, Job
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import open_storage

_REMEMBERED: Final = 32


class ProgressReader:
    """Reads run directories; plans and commits never change, so each is read once."""

    def __init__(self, settings: StorageSettings) -> None:
        self._settings = settings
        self._known: OrderedDict[str, tuple[Plan, dict[str, CommitRecord]]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, job: Job) -> dict[str, Any] | None:
        """Counts, and seconds left for a job that runs; None before there is a plan. Blocking."""
        storage = open_storage(job.spec.out, self._settings)
        with self._lock:
            if storage.uri not in self._known:
                if not storage.exists(plan_file(0)):
                    return None
                self._known[storage.uri] = (read_plan(storage), {})
            self._known.move_to_end(storage.uri)
            plan, commits = self._known[storage.uri]
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            for shard in committed_shards(storage, 0) & set(plan.shards) - commits.keys():
                commits[shard] = read_commit(storage, 0, shard)
            totals = add_up(commits.values())
        left = len(plan.shards) - len(commits)
        start = job.started if job.state == "running" else None
        return {
            "shards": len(plan.shards),
            "shards_done": len(commits),
            "items": plan.catalog.items,
            "items_done": totals.items,
            "annotated": totals.ok,
            "quarantined": totals.quarantined,
            "causes": totals.causes,
            "published": is_published(storage, 0),
            "eta_s": eta_s(start, len(commits), left, datetime.now(UTC)) if start else None,
            "model_version": plan.model.version,
            "model_digest": plan.model.digest,
        }


def shards_done(job: Job, settings: StorageSettings) -> int:
    """Committed shards of a job's run directory."""
    return len(committed_shards(open_storage(job.spec.out, settings), 0))


def eta_s(start: Event, done: int, left: int, now: datetime) -> float | None:
    """Seconds until the last shard at the pace since the start; None before the first one. Shards are cut by work."""
    since_start = done - start.shards_done
    if since_start <= 0:
        return None
    return round(left * (now - start.at).total_seconds() / since_start, 1)

"""Runs the queue's jobs on the bulk cluster, a few at a time, as Ray jobs that outlive this process.

This process holds no state: the queue has a running job's submission, the cluster has the submission's state, and the
run directory has the progress. Only the holder of the lease acts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from mmva_platform.serving.jobs.cluster import BulkCluster
from mmva_platform.serving.jobs.lease import Lease
from mmva_platform.serving.jobs.queue import Job, JobQueue, Start, nested, next_job

logger = logging.getLogger(__name__)

_POLL_S: Final = 1.0
_MOST_FRUITLESS: Final = 5


class JobRunner:
    """Starts, watches and cancels jobs; `step` handles the queue once."""

    def __init__(
        self, queue: JobQueue, lease: Lease, cluster: BulkCluster, shards_done: Callable[[Job], int], most: int
    ) -> None:
        """Bind to a queue, its lease and a cluster; `shards_done` counts a job's commits, `most` jobs run at once."""
        self._queue, self._lease, self._cluster = queue, lease, cluster
        self._shards_done, self._most = shards_done, most
        self._stopped: set[str] = set()  # submissions of cancelled jobs
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run in a thread."""
        self._thread = threading.Thread(target=self._run, name="mmva-jobs", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises RuntimeError if the thread has ended."""
        if self._thread is None or not self._thread.is_alive():
            raise RuntimeError("the runner of jobs has stopped")

    def stop(self) -> None:
        """End the runner but not the jobs, which the next runner takes over."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        self._lease.release()

    def step(self) -> None:
        """Record ended jobs, stop cancelled ones, restart lost ones, then start as many waiting ones as fit."""
        if not self._lease.held():
            return
        jobs = self._queue.jobs()
        for name in {job.start.submission_id for job in jobs if job.state == "cancelled" and job.start}:
            if name not in self._stopped:
                self._cluster.stop(name)
                self._stopped.add(name)
        for job in jobs:
            if job.state == "running":
                self._look_after(job)
        while self._lease.held():
            jobs = self._queue.jobs()
            waiting = next_job(jobs)
            if waiting is None or sum(job.state == "running" for job in jobs) >= self._most:
                return
            other = nested(waiting.spec.out, [job for job in jobs if job.submitted_at < waiting.submitted_at])
            if other is not None:  # both were submitted at the same time
                self._queue.put(waiting.changed("failed", message=f"the output is inside or around {other}"))
            else:
                self._begin(waiting)

    def _look_after(self, job: Job) -> None:
        assert job.start is not None
        found = self._cluster.state(job.start.submission_id)
        if found.state == "running":
            return
        if found.state == "lost":
            logger.warning("job %s: the cluster lost it; starting it again", job.id)
            self._begin(job)
        elif found.state == "succeeded":
            self._queue.put(job.changed("done", message=""))
        else:
            self._queue.put(job.changed("failed", message=found.message))

    def _begin(self, job: Job) -> None:
        """Start or restart a job; fail a job that makes no progress."""
        done, last = self._shards_done(job), job.start if job.state == "running" else None
        fruitless = last.fruitless + 1 if last is not None and last.shards_done >= done else 0
        if fruitless >= _MOST_FRUITLESS:
            text = f"started {fruitless} times without progress at {done} committed shards"
            self._queue.put(job.changed("failed", message=text))
            return
        name = f"mmva-{job.id}-{job.number + 1}"
        changed = job.changed("running", message="")
        start = Start(at=changed.changed_at, submission_id=name, shards_done=done, fruitless=fruitless)
        changed = changed.model_copy(update={"start": start})
        # Submitting takes seconds. If another runner gets the lease meanwhile, it finds the job lost and starts it.
        if self._queue.put(changed) and self._lease.held():
            self._cluster.submit(changed, name)

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                self.step()
            except Exception as error:  # noqa: BLE001 - storage may be unavailable; try again
                logger.warning("jobs: %s", error)

"""Runs the queue's jobs, a few at a time, each in a process of its own on the cluster.

There is no state here to lose: when the runner dies, its processes die with it, and the next one starts again what
the queue calls running; the run directory says where to go on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol

from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError
from mmva_platform.annotation import annotate
from mmva_platform.annotation.plan import plan_file, read_plan
from mmva_platform.serving.jobs import Job, JobQueue, JobSpec, ended, next_job, started
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

logger = logging.getLogger(__name__)

_POLL_S: Final = 1.0
_EXPECTED = (UsageError, CheckFailed, OperationFailed, MediaError)


class Process(Protocol):
    """A job at work."""

    def result(self) -> tuple[bool, str | None]:
        """Whether it ended, and then why it failed; raises ProcessLostError if it died. Does not wait."""

    def kill(self) -> None:
        """End it at once."""


class ProcessLostError(Exception):
    """A job's process is gone without a result."""


class JobRunner:
    """Starts, watches and cancels; `step` is one look at the queue."""

    def __init__(
        self, queue: JobQueue, launch: Callable[[JobSpec], Process], done_shards: Callable[[Job], int], most: int
    ) -> None:
        self._queue, self._launch, self._done_shards, self._most = queue, launch, done_shards, most
        self._running: dict[str, Process] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Run in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="mmva-jobs", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """RuntimeError if the thread is gone."""
        if self._thread is None or not self._thread.is_alive():
            raise RuntimeError("the runner of jobs has stopped")

    def stop(self) -> None:
        """End, and every process with it; the jobs stay "running" for whoever comes next."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        for process in self._running.values():
            process.kill()

    def step(self) -> None:
        """End what ended or was cancelled, then start what there is room for."""
        jobs = {job.id: job for job in self._queue.jobs()}
        for name in list(self._running):
            self._look_after(jobs[name])
        while len(self._running) < self._most:
            job = next_job(self._queue.jobs(), list(self._running))
            if job is None:
                return
            self._begin(job)

    def _look_after(self, job: Job) -> None:
        process = self._running[job.id]
        if job.state != "running":  # cancelled
            process.kill()
            del self._running[job.id]
            return
        try:
            is_done, error = process.result()
        except ProcessLostError:
            logger.warning("job %s: its process is gone; starting it again", job.id)
            del self._running[job.id]
            return
        if is_done:
            del self._running[job.id]
            self._queue.append(job, ended(error))

    def _begin(self, job: Job) -> None:
        if job.worn_out:
            self._queue.append(job, ended(f"started {job.starts} times and never came to an end"))
        elif self._queue.append(job, started(self._done_shards(job))):
            self._running[job.id] = self._launch(job.spec)

    def _run(self) -> None:
        while not self._stop.wait(_POLL_S):
            try:
                self.step()
            except Exception as error:  # noqa: BLE001 - storage that is away; the queue is there when it is back
                logger.warning("jobs: %s", error)


def carry_out(spec: JobSpec, settings: Settings) -> str | None:
    """Annotate a job's catalog in this process, on the cluster; why it failed, None if it did not."""
    roots = (*settings.annotation.roots, *settings.serving.roots)
    settings = settings.model_copy(update={"annotation": settings.annotation.model_copy(update={"roots": roots})})
    try:
        annotate(
            spec.catalog,
            _settled_model(spec, settings),
            spec.out,
            settings,
            max_errors=spec.max_errors,
            engine=settings.serving.engine,
        )
    except _EXPECTED as error:
        return str(error)
    return None


def _settled_model(spec: JobSpec, settings: Settings) -> str:
    """The model to go on with: that of the run directory, if it is begun, whatever its alias means by now."""
    storage = open_storage(spec.out, settings.storage)
    if "@" in spec.model and storage.exists(plan_file(0)):
        begun = read_plan(storage).model
        return f"models:/{begun.name}/{begun.version}"
    return spec.model

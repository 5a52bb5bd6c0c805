"""Ray Serve: model replicas, the front, the runner of jobs, bound together. Only this file and server.py know Ray."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from mmva.errors import OperationFailed
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.cluster import LARGE_MESSAGES
from mmva_platform.serving.app import create_app
from mmva_platform.serving.front import Front, OverloadedError, ReplicaLostError
from mmva_platform.serving.host import ModelHost
from mmva_platform.serving.jobs import JobQueue, JobSpec
from mmva_platform.serving.kept import Kept
from mmva_platform.serving.keys import Keyring, keys_file
from mmva_platform.serving.listener import Listener
from mmva_platform.serving.metrics import Metrics
from mmva_platform.serving.model import ServedModel
from mmva_platform.serving.progress_of_jobs import shards_done
from mmva_platform.serving.runner import JobRunner, ProcessLostError, carry_out
from mmva_platform.serving.services import Answers, ItemRequest, Row, Services
from mmva_platform.serving.shadow import differences, record
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

Report = Callable[[str, Path, Settings], None]

_NICE: Final = 5  # the front answers first, also on a machine whose every core is inferring
_LOOK_S: Final = 5.0
_HEALTH_S: Final = 1.0  # a process that died is noticed so late
_HEAD: Final = "node:__internal_head__"  # of which the head node has 1.0
_TOUCH: Final = 0.001


class Replica:
    """Holds a model; one thread decodes and infers, another tries suspects apart."""

    def __init__(self, uri: str, settings: Settings, *, optional: bool = False) -> None:
        os.nice(_NICE)
        self._host = ModelHost(uri, settings, optional=optional, wait=settings.serving.wait_for_model)
        self._host.follow()
        self._settings = settings
        self._work = ThreadPoolExecutor(1, thread_name_prefix="mmva-infer")
        self._apart = ThreadPoolExecutor(1, thread_name_prefix="mmva-apart")
        self._batched.set_max_batch_size(settings.serving.batch_size)

    async def current(self) -> ModelInfo | None:
        """The model that answers."""
        return self._host.model.info if self._host.model else None

    async def versions(self) -> list[dict[str, Any]]:
        """What is registered; nothing where the model is not from the registry."""
        from mmva_platform.tracking.registry import list_versions

        if not self._settings.serving.model.startswith("models:"):
            return []
        found = await asyncio.to_thread(list_versions, self._settings)
        return [version.to_json() for version in found]

    async def annotate(self, items: list[ItemRequest]) -> Answers:
        """Rows of some items, by way of a batch that others may share."""
        return await self._batched(items)

    async def carefully(self, items: list[ItemRequest]) -> Answers:
        """The same in a process that may die of them."""
        model = self._ready()
        rows = await asyncio.get_running_loop().run_in_executor(self._apart, model.annotate_carefully, items)
        return Answers(model.info, rows)

    async def compare(self, items: list[ItemRequest], champion: list[Row]) -> list[Row]:
        """Differences of this challenger's rows to the champion's, put on record; nothing while there is none."""
        model = self._host.model
        if model is None or not champion or champion[0]["model_digest"] == model.info.digest:
            return []
        answers = await self._batched(items)
        found = differences(champion, answers.rows)
        shadow = open_storage(self._settings.home.resolve() / "serving" / "shadow", self._settings.storage)
        await asyncio.to_thread(record, shadow, found, champion[0]["model_digest"], answers.model)
        return found

    # No waiting for company: what arrives during a batch is the next one.
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0, batch_size_fn=lambda requests: sum(map(len, requests)))
    async def _batched(self, requests: list[list[ItemRequest]]) -> list[Answers]:
        model = self._ready()
        items = [item for request in requests for item in request]
        rows = await asyncio.get_running_loop().run_in_executor(self._work, model.annotate, items)
        answers, first = [], 0
        for request in requests:
            answers.append(Answers(model.info, rows[first : first + len(request)]))
            first += len(request)
        return answers

    def _ready(self) -> ServedModel:
        if self._host.model is None:
            raise OperationFailed("there is no model yet")
        return self._host.model


class JobRunnerReplica:
    """The one runner of the queue's jobs."""

    def __init__(self, settings: Settings) -> None:
        self._runner = JobRunner(
            job_queue(settings),
            partial(JobProcess, settings=settings),
            partial(shards_done, settings=settings.storage),
            settings.serving.max_running_jobs,
        )
        self._runner.start()

    def check_health(self) -> None:
        """Asked by Serve."""
        self._runner.check()

    def __del__(self) -> None:
        self._runner.stop()


class JobProcess:
    """A job in an actor of its own, which dies with the runner."""

    def __init__(self, spec: JobSpec, settings: Settings) -> None:
        # No CPU of its own: it waits for the pool's actors, which have theirs.
        self._actor = ray.remote(num_cpus=0, max_restarts=0)(_JobActor).remote()
        self._result = self._actor.run.remote(spec, settings)

    def result(self) -> tuple[bool, str | None]:
        """See runner.Process."""
        done, _ = ray.wait([self._result], timeout=0)
        if not done:
            return False, None
        try:
            return True, ray.get(self._result)
        except RayActorError as error:
            raise ProcessLostError from error
        except RayTaskError as error:  # a bug of ours
            return True, f"{type(error.cause).__name__}: {error.cause}"

    def kill(self) -> None:
        """See runner.Process."""
        ray.kill(self._actor)


class _JobActor:
    def run(self, spec: JobSpec, settings: Settings) -> str | None:
        return carry_out(spec, settings)


class FrontReplica:
    """Speaks HTTP: the application, with handles to the others."""

    async def __init__(  # type: ignore[misc] # Serve awaits it, on the loop that the routes run on
        self, model: Any, challenger: Any, settings: Settings, report: Report, _jobs: Any
    ) -> None:
        self._settings = settings
        model = _straight(model)
        self._metrics = Metrics(serve.get_replica_context().replica_id.unique_id)
        self._front = Front(
            partial(_ask, model.annotate),
            partial(_ask, model.carefully),
            partial(_ask, model.current),
            partial(_ask, model.versions),
            settings=settings.serving,
            metrics=self._metrics,
            compare=partial(_ask, challenger.compare) if challenger is not None else None,
        )
        self._report = report
        self._jobs = job_queue(settings)
        self._looking = asyncio.create_task(self._keep_looking())

    def __serve_build_asgi_app__(self) -> Any:
        settings = self._settings
        services = Services(
            settings=settings,
            keyring=Keyring(settings.serving.keys, keys_file(settings)),
            models=self._front,
            jobs=self._jobs,
            report=Kept(self._make_report, settings),
            open_index=Kept(self._open_index, settings),
        )
        return create_app(services, self._metrics, lambda: self._front.known)

    async def _keep_looking(self) -> None:
        """Learn of a new model also when nobody sends items, and of the queue."""
        while True:
            await self._front.current()
            with contextlib.suppress(OperationFailed):  # storage that is away: the numbers stay as they were
                self._metrics.jobs(await asyncio.to_thread(self._jobs.states))
            await asyncio.sleep(_LOOK_S)

    def _open_index(self, uri: str) -> Any:
        from mmva_platform.search import AnnotationIndex

        return AnnotationIndex.open(uri, self._settings)

    def _make_report(self, uri: str) -> str:
        """In a process of its own: drawing would hold this one's interpreter for seconds."""
        task = ray.remote(num_cpus=0, max_retries=0)(_report)
        try:
            page: str = ray.get(task.remote(self._report, uri, self._settings))
        except RayTaskError as error:
            raise error.as_instanceof_cause() from error
        return page


class ListeningFront(FrontReplica):
    """The same on a port of its own, without Serve's proxy and its two hops more."""

    async def __init__(self, *bound: Any) -> None:  # type: ignore[misc]
        await super().__init__(*bound)
        serving = self._settings.serving
        self._listener = Listener(self.__serve_build_asgi_app__(), serving.host, serving.port)

    async def __del__(self) -> None:
        """Awaited by Serve before it ends the process."""
        if hasattr(self, "_listener"):
            await self._listener.stop()


def job_queue(settings: Settings) -> JobQueue:
    """The queue that these settings name."""
    place = settings.serving.jobs or str(settings.home.resolve() / "serving" / "jobs")
    return JobQueue(place, settings.serving, settings.storage)


def build(settings: Settings, report: Report, *, listens: bool = False) -> serve.Application:
    """The application for serve.run.

    Args:
        settings: Of the platform; every replica gets them.
        report: Writes a published annotation's report to a file.
        listens: The front opens `serving.port` itself, on the head node; otherwise it stands behind Serve's proxies.
    """
    serving = settings.serving
    # Home may be relative; the replicas' working directories are their own.
    settings = settings.model_copy(update={"home": settings.home.resolve()})
    front = serve.deployment(ListeningFront if listens else serve.ingress()(FrontReplica))
    runner = serve.deployment(JobRunnerReplica)
    room = serving.max_in_flight + 16
    model = _model(serving.model, settings, "model", serving.replicas)
    challenger = _model(serving.challenger, settings, "challenger", 1) if serving.challenger else None
    return front.options(
        name="front",
        num_replicas=serving.front_replicas,
        health_check_period_s=_HEALTH_S,
        max_ongoing_requests=4 * room,  # what is too much is told by the gate, at once
        ray_actor_options={"num_cpus": 0, "resources": {_HEAD: _TOUCH} if listens else {}},
    ).bind(
        model,
        challenger,
        settings,
        report,
        runner.options(name="jobs", num_replicas=1, ray_actor_options={"num_cpus": 0}).bind(settings),
    )


def _model(uri: str | None, settings: Settings, name: str, replicas: int) -> Any:
    serving = settings.serving
    return (
        serve.deployment(Replica)
        .options(
            name=name,
            num_replicas=replicas,
            max_ongoing_requests=2 * (serving.max_in_flight + 16),
            ray_actor_options={"num_cpus": serving.replica_cpus},
            health_check_period_s=_HEALTH_S,
            health_check_timeout_s=serving.item_timeout_s + 10,
        )
        .bind(uri, settings, optional=name == "challenger")
    )


def _straight(handle: Any) -> Any:
    """A handle that does not go by way of actor calls and the object store, 3 ms less; where messages may be large."""
    return handle.options(_by_reference=False) if LARGE_MESSAGES in os.environ else handle


async def _ask(method: Any, *arguments: Any) -> Any:
    """Call a replica; what Ray says of dead or full ones in the front's words."""
    try:
        return await method.remote(*arguments)
    except BackPressureError:
        raise OverloadedError from None
    except (RayActorError, WorkerCrashedError, DeploymentUnavailableError) as error:
        raise ReplicaLostError from error


def _report(report: Report, uri: str, settings: Settings) -> str:
    with TemporaryDirectory(prefix="mmva-report-") as folder:
        file = Path(folder) / "report.html"
        report(uri, file, settings)
        return file.read_text(encoding="utf-8")

"""The Ray Serve application: API, model, job runner. `mmva serve`, `serve deploy` and RayService all run it."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any, Final

import ray
from ray import serve
from ray.exceptions import RayTaskError

from mmva.errors import OperationFailed, UsageError
from mmva_platform.cluster import cluster_for_jobs, ray_session
from mmva_platform.monitoring.metrics import ApiMetrics
from mmva_platform.serving.app import create_app
from mmva_platform.serving.auth import Keyring, keys_file
from mmva_platform.serving.cache import AnnotationCache
from mmva_platform.serving.client import ModelClient
from mmva_platform.serving.context import Context
from mmva_platform.serving.jobs.cluster import BulkCluster
from mmva_platform.serving.jobs.lease import Lease
from mmva_platform.serving.jobs.progress import ProgressReader, shards_done
from mmva_platform.serving.jobs.queue import JobQueue, count_states
from mmva_platform.serving.jobs.runner import JobRunner
from mmva_platform.serving.replica import ModelReplica
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

logger = logging.getLogger(__name__)

Report = Callable[..., None]  # as workflows.report_annotation

APP: Final = "mmva"
_MODEL_S: Final = 2.0  # how often the API asks for the model
_JOBS_S: Final = 15.0  # how often it counts the jobs
_PORT_S: Final = 20.0


class ApiReplica:
    """The HTTP application, with handles to the other deployments."""

    async def __init__(self, model: Any, settings: Settings, report: Report, _jobs: Any) -> None:  # type: ignore[misc] # Serve awaits it in the event loop of the routes
        self._settings, self._report = settings, report
        self._metrics = ApiMetrics()
        self._models = ModelClient(model, self._metrics)
        self._jobs = JobQueue(queue_uri(settings), settings.serving, settings.storage)
        looks = ((_MODEL_S, "model", self._models.refresh), (_JOBS_S, "jobs", self._count_jobs))
        self._looking = [asyncio.create_task(self._look(*look)) for look in looks]

    def __serve_build_asgi_app__(self) -> Any:
        settings = self._settings
        context = Context(
            settings=settings,
            keyring=Keyring(settings.serving.keys, keys_file(settings)),
            models=self._models,
            jobs=self._jobs,
            progress=ProgressReader(settings),
            report=AnnotationCache(self._make_report, settings),
            open_index=AnnotationCache(self._open_index, settings),
            metrics=self._metrics,
        )
        return create_app(context)

    async def _look(self, every_s: float, what: str, look: Callable[[], Awaitable[object]]) -> None:
        """Poll for a new model or for jobs, also without requests."""
        while True:
            try:
                await look()
            except Exception as error:  # noqa: BLE001 - registry or storage may be unavailable; keep the last values
                logger.warning("%s: %s", what, error)
            await asyncio.sleep(every_s)

    async def _count_jobs(self) -> None:
        self._metrics.jobs(count_states(await asyncio.to_thread(self._jobs.jobs)))

    def _open_index(self, uri: str) -> Any:
        from mmva_platform.search.explored import ExploredCatalog

        return ExploredCatalog.open(uri, self._settings)

    def _make_report(self, uri: str) -> str:
        """Make the report in another process, because drawing would block this one for seconds."""
        task = ray.remote(num_cpus=0, max_retries=0)(_report)
        try:
            page: str = ray.get(task.remote(self._report, uri, self._settings))
        except RayTaskError as error:
            raise error.as_instanceof_cause() from error
        return page


class JobRunnerReplica:
    """Runs the jobs of the queue."""

    def __init__(self, settings: Settings) -> None:
        uri = queue_uri(settings)
        self._runner = JobRunner(
            JobQueue(uri, settings.serving, settings.storage),
            Lease(open_storage(uri, settings.storage)),
            BulkCluster(settings, ray.get_runtime_context().gcs_address),
            partial(shards_done, settings=settings),
            settings.serving.max_running_jobs,
        )
        self._runner.start()

    def check_health(self) -> None:
        """Serve's health check."""
        self._runner.check()

    def __del__(self) -> None:
        self._runner.stop()


def queue_uri(settings: Settings) -> str:
    """The place of the job queue."""
    return settings.serving.jobs or str(settings.home.resolve() / "serving" / "jobs")


def build(settings: Settings, report: Report) -> serve.Application:
    """The application for serve.run and `serve deploy`; `report` writes a published annotation's report to a file."""
    serving = settings.serving
    # Home may be relative, and replicas have other working directories.
    settings = settings.model_copy(update={"home": settings.home.resolve()})
    runner = serve.deployment(JobRunnerReplica).options(name="jobs", num_replicas=1, ray_actor_options={"num_cpus": 0})
    # The API refuses excess requests at once and with a reason; Serve's own limits are wider.
    api = serve.deployment(serve.ingress()(ApiReplica)).options(
        name="api",
        max_ongoing_requests=4 * serving.max_in_flight,
        max_queued_requests=4 * serving.max_in_flight,
        ray_actor_options={"num_cpus": serving.api_cpus},
        **_scaling(serving.api_replicas, serving.max_api_replicas, serving.max_in_flight / 2),
    )
    model = serve.deployment(ModelReplica).options(
        name="model",
        max_ongoing_requests=serving.max_in_flight,
        max_queued_requests=serving.max_queued_requests,
        ray_actor_options={"num_cpus": serving.replica_cpus, "num_gpus": serving.replica_gpus},
        health_check_timeout_s=serving.item_timeout_s + 30,
        **_scaling(serving.replicas, serving.max_replicas, serving.target_ongoing_requests),
    )
    return api.bind(model.bind(settings), settings, report, runner.bind(settings))


def _scaling(least: int, most: int | None, target: float) -> dict[str, Any]:
    if most is None or most <= least:
        return {"num_replicas": least}
    autoscaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": target}
    return {"autoscaling_config": autoscaling}


@contextmanager
def running(settings: Settings, report: Report) -> Iterator[str]:
    """Run the API during the block; yields its address. Raises OperationFailed if it does not start."""
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    serving = settings.serving
    with cluster_for_jobs(settings.cluster) as cluster, ray_session(cluster):
        quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options=HTTPOptions(host=serving.host, port=serving.port), logging_config=quiet)
        try:
            serve.run(build(settings, report), name=APP, route_prefix=serving.route_prefix, logging_config=quiet)
        except RuntimeError as error:  # Serve names only the deployment; its log has the cause
            first = str(error).partition("\n")[0]
            raise OperationFailed(f"serve: {first}; see Ray's logs in logs/serve") from error
        try:
            yield f"http://{serving.host}:{serving.port}{serving.route_prefix.rstrip('/')}"
        finally:
            # Not serve.shutdown(), which would end other applications on a shared cluster.
            serve.delete(APP)


def serve_until_stopped(
    settings: Settings, report: Report, on_ready: Callable[[str], object] = lambda _address: None
) -> None:
    """Serve until SIGINT or SIGTERM; running jobs continue at the next start. `on_ready` gets the address.

    Raises UsageError if the port is in use, or there is no such model.
    """
    from mmva_platform.tracking.resolve import resolve_model

    await_port(settings.serving.host, settings.serving.port)
    if not settings.serving.wait_for_model:
        resolve_model(settings.serving.model, settings)  # an error of one line instead of a replica's traceback
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with running(settings, report) as address:
        logger.info("serving %s at %s (documentation: /docs); Ctrl-C ends it", settings.serving.model, address)
        on_ready(address)
        while not stop.wait(1.0):
            pass
    logger.info("stopped")


def await_port(host: str, port: int, patience_s: float = _PORT_S) -> None:
    """Wait until a port is free, because proxies of a killed server end seconds later. Raises UsageError if not."""
    deadline, family = monotonic() + patience_s, socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        try:
            return socket.create_server((host, port), family=family).close()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or monotonic() > deadline:
                reason = (error.strerror or str(error)).partition(" (while")[0]
                raise UsageError(f"serving: port {port} on {host}: {reason}") from error
        sleep(0.5)


def _report(report: Report, uri: str, settings: Settings) -> str:
    with TemporaryDirectory(prefix="mmva-report-") as folder:
        file = Path(folder) / "report.html"
        report(uri, file, settings, roots=settings.serving.roots)
        return file.read_text(encoding="utf-8")

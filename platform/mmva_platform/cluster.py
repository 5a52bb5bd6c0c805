"""Ray: connect or start it, say beforehand what cannot run, stream shards through actors, fail what stands still."""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import mmva
import mmva_platform
from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError
from mmva_platform.settings import ClusterSettings

logger = logging.getLogger(__name__)

CPUS_PER_ACTOR: Final = 0.5  # actors may not take every CPU: Ray Data's own tasks would starve, silently
FREE_CPUS: Final = 1.0
_START_ATTEMPTS: Final = 3  # a busy machine misses the limits that are built into Ray
_CONNECT_TIMEOUT_S = 10.0
_EXPECTED_ERRORS = (UsageError, CheckFailed, OperationFailed, MediaError)
_RAY_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of this process: Ray Data's own actors provoke an error line about restarts
    "RAY_ENABLE_AUTO_CONNECT": "0",  # or a thread left behind by a stalled job would start a second Ray
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray Train takes reports when it polls: every 2 s, an epoch takes less
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a FutureWarning about GPUs that nobody asked for
}


class StalledError(OperationFailed):
    """A job made no progress for too long; the message names its stage."""

    def __init__(self, stage: str, done: int, total: int, seconds: float) -> None:
        super().__init__(f"{stage}: no progress for {seconds:g} s at {done} of {total} shards; see Ray's logs")
        self.stage, self.done, self.total, self.seconds = stage, done, total, seconds

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the constructor's arguments."""
        return type(self), (self.stage, self.done, self.total, self.seconds)


@dataclass(frozen=True)
class ClusterInfo:
    """What a session runs on. `cpus` are logical; `workers` is the default number of actors."""

    address: str
    nodes: int
    cpus: float
    gpus: float
    workers: int
    started: bool


@contextmanager
def ray_session(settings: ClusterSettings | None = None) -> Iterator[ClusterInfo]:
    """Ray for the length of a block: the running session, the configured cluster, or a private one on this machine.

    Only what was started or connected here is shut down at the end. Inside a submitted job RAY_ADDRESS names the
    cluster.

    Raises:
        UsageError: If the configured cluster does not answer.
        OperationFailed: If Ray does not start on this machine.
    """
    settings = settings or ClusterSettings()
    os.environ.update({key: value for key, value in _RAY_ENVIRONMENT.items() if key not in os.environ})
    import ray

    started = not ray.is_initialized()
    if started:
        _init(settings)
    try:
        yield _info(started=started)
    finally:
        if started:
            ray.shutdown()


def check_feasible(actors: int, cpus_per_actor: float = CPUS_PER_ACTOR) -> None:
    """UsageError when the actors and one free CPU do not fit the cluster: such a job would hang silently."""
    import ray

    cpus = ray.cluster_resources().get("CPU", 0.0)
    wanted = actors * cpus_per_actor + FREE_CPUS
    if wanted > cpus:
        most = max(0, int((cpus - FREE_CPUS) / cpus_per_actor))
        raise UsageError(
            f"{actors} workers at {cpus_per_actor:g} CPU and {FREE_CPUS:g} free CPU need {wanted:g} CPUs, the cluster "
            f"has {cpus:g}: use at most {most} workers or set cluster.num_cpus"
        )


def default_workers() -> int:
    """One worker a physical CPU of the cluster, as many as fit beside the free one."""
    import ray

    cpus = ray.cluster_resources().get("CPU", 0.0)
    # A local session may have been given more logical CPUs than the machine has.
    physical = min(cpus, _own_cpus()) if len(ray.nodes()) == 1 else cpus
    return max(1, int(min(physical, (cpus - FREE_CPUS) / CPUS_PER_ACTOR)))


def run_shards(
    items: Sequence[Mapping[str, Any]],
    worker_class: Callable[..., Callable[[dict[str, Any]], Any]],
    *,
    stage: str,
    on_result: Callable[[Any], None],
    constructor_kwargs: Mapping[str, Any] | None = None,
    workers: int | None = None,
    stall_timeout_s: float = 300.0,
) -> None:
    """Run every item through a pool of actors; results come one by one, as they are made, in no order.

    Each actor constructs `worker_class(**constructor_kwargs)` once, at its first item, and calls it with an item at a
    time; it has half a logical CPU and one thread. An actor that dies is replaced and its item run again, so a worker
    must commit its output in a way that bears repetition. Needs a Ray session.

    Args:
        items: Picklable mappings, one a shard.
        worker_class: Importable class (or factory) whose objects take an item and return a picklable result.
        stage: Name for errors, such as "embed image".
        on_result: Called in this thread with every result.
        constructor_kwargs: For worker_class.
        workers: Actors; default_workers() when None. Never more than there are items.
        stall_timeout_s: Longest wait for a next result.

    Raises:
        UsageError, CheckFailed, OperationFailed, MediaError: As raised by the worker, without Ray's wrapping.
        StalledError: If nothing arrived for stall_timeout_s.
    """
    if not items:
        return
    actors = min(workers or default_workers(), len(items))
    check_feasible(actors)
    rows = _stream(items, worker_class, dict(constructor_kwargs or {}), actors)
    for result in _guarded(rows, stage, len(items), stall_timeout_s):
        if isinstance(result, _Failure):
            raise result.error
        on_result(result)


@dataclass(frozen=True)
class _Failure:
    """An expected error on its way from a worker to the driver."""

    error: BaseException


class _ShardActor:
    """Runs in the pool: unpacks an item, calls the worker, packs what came of it."""

    def __init__(self, worker_class: Callable[..., Callable[[dict[str, Any]], Any]], kwargs: dict[str, Any]) -> None:
        self._worker_class = worker_class
        self._kwargs = kwargs
        self._worker: Callable[[dict[str, Any]], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        from ray import cloudpickle

        item = cloudpickle.loads(batch["item"][0])
        try:
            if self._worker is None:  # here and not in __init__, so that its errors take the same way home
                self._worker = self._worker_class(**self._kwargs)
                _one_thread()
            result: Any = self._worker(item)
        except _EXPECTED_ERRORS as error:
            result = _Failure(error)
        return {"result": [cloudpickle.dumps(result)]}


def _stream(
    items: Sequence[Mapping[str, Any]], worker_class: Callable[..., Any], kwargs: dict[str, Any], actors: int
) -> Iterator[Any]:
    """The lazy stream of results; everything is set up before the first one is asked for."""
    import ray.data
    from ray import cloudpickle

    _quiet_ray_data()
    # Pickled cells: Arrow would turn nested lists, None and int into its own types on the way.
    rows = [{"item": cloudpickle.dumps(dict(item))} for item in items]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ShardActor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        num_cpus=CPUS_PER_ACTOR,
        fn_constructor_args=(worker_class, kwargs),
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    batches = dataset.iter_batches(batch_size=1, prefetch_batches=0)
    return (cloudpickle.loads(batch["result"][0]) for batch in batches)


def _guarded(results: Iterator[Any], stage: str, total: int, timeout_s: float) -> Iterator[Any]:
    """The same results, pulled by a thread so that waiting for the next one can end in StalledError."""
    mailbox: queue.Queue[_Mail] = queue.Queue(maxsize=8)
    stop = threading.Event()
    threading.Thread(target=_pull, args=(results, mailbox, stop), name="mmva-results", daemon=True).start()
    try:
        for done in range(total):
            try:
                mail = mailbox.get(timeout=timeout_s)
            except queue.Empty:
                raise StalledError(stage, done, total, timeout_s) from None
            if mail.error is not None:
                raise mail.error
            yield mail.result
    finally:
        stop.set()


class _Mail(NamedTuple):
    """What the pulling thread hands over: a result, or the error that ended the stream."""

    result: Any
    error: BaseException | None = None


def _pull(results: Iterator[Any], mailbox: queue.Queue[_Mail], stop: threading.Event) -> None:
    try:
        for result in results:
            _deliver(_Mail(result), mailbox, stop)
            if stop.is_set():
                return
    except BaseException as error:  # noqa: BLE001 - re-raised in the caller's thread
        _deliver(_Mail(None, error), mailbox, stop)
    else:
        _deliver(_Mail(None, RuntimeError("Ray Data ended with fewer results than shards")), mailbox, stop)


def _deliver(mail: _Mail, mailbox: queue.Queue[_Mail], stop: threading.Event) -> None:
    """Put, but never wait for a reader that has gone."""
    while not stop.is_set():
        try:
            mailbox.put(mail, timeout=0.5)
        except queue.Full:
            continue
        return


def _init(settings: ClusterSettings) -> None:
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _connect(address)
    else:
        _start(settings)


def _connect(address: str) -> None:
    import ray

    try:
        _knock(address)
        with _native_stderr_closed():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"cluster.address {address}: no Ray cluster answers there ({reason})") from error


def _start(settings: ClusterSettings) -> None:
    import ray

    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            with _native_stderr_closed():
                ray.init(
                    address="local",
                    # On a single CPU a worker and Ray Data's own tasks would never fit; logical CPUs cost nothing.
                    num_cpus=settings.num_cpus or (None if _own_cpus() > 1 else 2),
                    include_dashboard=False,
                    object_store_memory=settings.object_store_mb * 2**20,
                    runtime_env={"env_vars": {"PYTHONPATH": _python_path()}},
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        except Exception as error:  # Ray raises this very class when its processes are not up within 30 s
            ray.shutdown()
            reason = str(error).strip().partition("\n")[0]
            if attempt == _START_ATTEMPTS:
                raise OperationFailed(f"cluster: Ray did not start on this machine ({reason})") from error
            logger.warning("cluster: Ray did not start (%s); the machine may be busy, trying again", reason)
        else:
            return


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Ray's C++ core says on the file descriptor that its log level was set; errors come as exceptions all the same."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(nowhere)
        os.close(saved)


def _knock(address: str) -> None:
    """OSError at once where nobody listens; Ray itself would try for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.port is not None:
        socket.create_connection((place.hostname or "", place.port), timeout=_CONNECT_TIMEOUT_S).close()


def _python_path() -> str:
    """PYTHONPATH by which workers find both packages, also when they run from a checkout that is not installed."""
    roots = [str(Path(str(package.__file__)).parents[1]) for package in (mmva, mmva_platform)]
    before = os.environ.get("PYTHONPATH", "")
    ours = [root for root in roots if not root.endswith(("site-packages", "dist-packages"))]
    return os.pathsep.join(dict.fromkeys([*ours, *filter(None, before.split(os.pathsep))]))


def _info(*, started: bool) -> ClusterInfo:
    import ray

    resources = ray.cluster_resources()
    return ClusterInfo(
        address=ray.get_runtime_context().gcs_address,
        nodes=sum(1 for node in ray.nodes() if node["Alive"]),
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        workers=default_workers(),
        started=started,
    )


def _quiet_ray_data() -> None:
    import ray.data

    with warnings.catch_warnings():
        # Ray 2.60 trips over its own deprecated defaults when it makes the context.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _one_thread() -> None:
    """One intra-op thread an actor: two in one process gave under half the throughput of two processes."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _own_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

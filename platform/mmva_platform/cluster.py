"""Connect to Ray or start it, and check first that a run fits the cluster."""

import logging
import os
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import mmva
import mmva_platform
from mmva.errors import EnvironmentFault, OperationFailed, UsageError
from mmva_platform.settings import ClusterSettings

logger = logging.getLogger(__name__)

FREE_CPUS: Final = 1.0  # not for training workers: without it the cluster's other tasks would wait forever
NICE_VARIABLE: Final = "MMVA_NICE"
_START_ATTEMPTS: Final = 3  # Ray's own time limits are too short for a busy machine
_CONNECT_TIMEOUT_S = 10.0
_LONGEST_SOCKET: Final = 107 if sys.platform == "linux" else 103  # bytes of a path; a limit of the kernel
_TEMPORARY_MB: Final = 64  # Ray's logs and sockets; on a full disk its processes end without a message
_GROWS_TO: ContextVar[float] = ContextVar("mmva_cluster_grows_to", default=0.0)
_RAY_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of this process: its errors arrive as exceptions
    "RAY_ENABLE_AUTO_CONNECT": "0",  # otherwise a thread left over from a stalled job would start a second Ray
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray Train polls for reports; its 2 s are longer than an epoch
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a proxy that needs 5 s to import on a busy machine is not dead
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C must end a sweep; Tune's own handler returns half of it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a FutureWarning about GPUs
}


@dataclass(frozen=True)
class ClusterInfo:
    """The cluster of a session; `cpus` counts logical CPUs."""

    address: str
    nodes: int
    cpus: float
    gpus: float
    started: bool


@contextmanager
def ray_session(settings: ClusterSettings | None = None) -> Iterator[ClusterInfo]:
    """Use Ray during a block: the running session, the configured cluster, or a private one on this machine.

    Ends only a session that it began. Inside a submitted job, RAY_ADDRESS names the cluster. Raises UsageError if the
    configured cluster does not answer; OperationFailed if Ray does not start on this machine; EnvironmentFault if
    TMPDIR is the reason.
    """
    settings = settings or ClusterSettings()
    grows = _GROWS_TO.set(float(settings.max_cpus or 0))
    _set_ray_environment()
    import ray

    started = not ray.is_initialized()
    try:
        if started:
            if address := _address_of(settings):
                _connect(address)
            else:
                _start(settings)
        yield _info(started=started)
    finally:
        _GROWS_TO.reset(grows)
        if started:
            ray.shutdown()


@contextmanager
def cluster_for_jobs(settings: ClusterSettings) -> Iterator[ClusterSettings]:
    """Yield settings of a cluster that accepts Ray jobs: the configured one, or one on this machine for the block.

    Does not use ray.init: it gives the job agent a fixed port, which another Ray on this machine may already use.
    Raises OperationFailed if Ray does not start on this machine; EnvironmentFault if TMPDIR is the reason.
    """
    if _address_of(settings):
        yield settings
        return
    _check_temporary_folder()
    _set_ray_environment()
    import torch
    from ray.cluster_utils import Cluster

    node = {
        "num_cpus": settings.num_cpus or max(own_cpus(), 2),
        "num_gpus": torch.cuda.device_count(),
        "object_store_memory": settings.object_store_mb * 2**20,
        "include_dashboard": True,
        "dashboard_port": None,  # any free port
        "dashboard_agent_listen_port": None,
    }
    try:
        with _native_stderr_closed(), _environment(PYTHONPATH=worker_python_path()):
            cluster = Cluster(initialize_head=True, head_node_args=node)
    except Exception as error:  # Ray raises no narrower class
        raise OperationFailed(f"cluster: Ray did not start on this machine ({_first_line(error)})") from error
    try:
        yield settings.model_copy(update={"address": cluster.address})
    finally:
        cluster.shutdown()


def lower_priority() -> None:
    """Lower this process's priority: the setup hook of the workers of a job that must yield to others."""
    os.nice(int(os.environ[NICE_VARIABLE]))


def check_feasible(workers: int, cpus_per_worker: float) -> None:
    """Raise UsageError if a training's workers and one free CPU do not fit the cluster: it would hang silently."""
    cpus = most_cpus()
    wanted = workers * cpus_per_worker + FREE_CPUS
    if wanted > cpus:
        most = max(0, int((cpus - FREE_CPUS) / cpus_per_worker))
        raise UsageError(
            f"{workers} workers at {cpus_per_worker:g} CPU and {FREE_CPUS:g} free CPU need {wanted:g} CPUs, the "
            f"cluster has {cpus:g}: use at most {most} workers, or set cluster.num_cpus for a local Ray, "
            "cluster.max_cpus for one that grows"
        )


def most_cpus() -> float:
    """Logical CPUs that the cluster has or, by the session's settings, may grow to."""
    import ray

    return max(ray.cluster_resources().get("CPU", 0.0), _GROWS_TO.get())


def most_gpus(settings: ClusterSettings) -> float:
    """GPUs that the cluster has or may grow to."""
    import ray

    return max(float(ray.cluster_resources().get("GPU", 0.0)), float(settings.max_gpus or 0))


def quiet_ray_data() -> None:
    """Create Ray Data's context, which Ray Train needs, without warnings about its own deprecated defaults."""
    import ray.data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ray.data.DataContext.get_current()
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _address_of(settings: ClusterSettings) -> str | None:
    """The address of a running cluster; None to start one on this machine."""
    address = settings.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def _set_ray_environment() -> None:
    os.environ.update({key: value for key, value in _RAY_ENVIRONMENT.items() if key not in os.environ})


def _connect(address: str) -> None:
    import ray

    try:
        _check_listening(address)
        with _native_stderr_closed():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"cluster.address {address}: no Ray cluster answers there ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def temporary_folder() -> tuple[str, str]:
    """The folder that Ray chooses for its sockets and logs on this machine, and the variable that sets it."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    return os.environ.get(name, "/tmp"), name  # noqa: S108 - Ray's own default


def temporary_fault() -> tuple[str, str] | None:
    """Why Ray cannot use its folder for temporary files, and the remedy; None if it can."""
    folder, name = temporary_folder()
    socket_path = f"{folder}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if (too_many := len(os.fsencode(socket_path)) - _LONGEST_SOCKET) > 0:
        return f"{name} {folder}: its path is {too_many} bytes too long for sockets", f"set {name} to a shorter path"
    try:
        free_mb = writable_bytes(Path(folder)) / 1e6
    except OSError as error:
        todo = f"set {name} to a writable folder with free space"
        return f"{name} {folder}: cannot be written ({error.strerror})", todo
    if free_mb < _TEMPORARY_MB:
        return f"{name} {folder}: {free_mb:.0f} MB free", f"set {name} to a folder with {_TEMPORARY_MB} MB or more"
    return None


def writable_bytes(folder: Path) -> int:
    """Free bytes of a folder's disk, whether or not the folder exists yet. Raises OSError if it cannot be written."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(bytes(2**20))
    return shutil.disk_usage(place).free


def _check_temporary_folder() -> None:
    if fault := temporary_fault():
        raise EnvironmentFault(f"cluster: Ray cannot start: {'; '.join(fault)}")


def _start(settings: ClusterSettings) -> None:
    import ray

    _check_temporary_folder()
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            with _native_stderr_closed(), _environment(PYTHONPATH=worker_python_path()):
                ray.init(
                    address="local",
                    # On a single CPU a worker and Ray Data's own tasks would never fit; logical CPUs cost nothing.
                    num_cpus=settings.num_cpus or (None if own_cpus() > 1 else 2),
                    include_dashboard=False,
                    object_store_memory=settings.object_store_mb * 2**20,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        except Exception as error:  # Ray raises no narrower class if its processes are not up within 30 s
            ray.shutdown()
            reason = _first_line(error)
            if attempt == _START_ATTEMPTS:
                raise OperationFailed(f"cluster: Ray did not start on this machine ({reason})") from error
            logger.warning("cluster: Ray did not start (%s); the machine may be busy, trying again", reason)
        else:
            return


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set variables that Ray's processes inherit when they start.

    A runtime_env would delay the first result by about 3 s: workers would wait for its agent, and Ray could not use
    the workers that it starts in advance.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Silence Ray's C++ core, which reports its log level on this file descriptor; errors arrive as exceptions."""
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


def _check_listening(address: str) -> None:
    """Raise OSError at once if no server listens; Ray itself would retry for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.port is not None:
        socket.create_connection((place.hostname or "", place.port), timeout=_CONNECT_TIMEOUT_S).close()


def worker_python_path() -> str:
    """The PYTHONPATH with which workers find both packages, even in a checkout that is not installed."""
    roots = [str(Path(str(package.__file__)).parents[1]) for package in (mmva, mmva_platform)]
    ours = [root for root in roots if not root.endswith(("site-packages", "dist-packages"))]
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*ours, *filter(None, before)]))


def _info(*, started: bool) -> ClusterInfo:
    import ray

    resources = ray.cluster_resources()
    return ClusterInfo(
        address=ray.get_runtime_context().gcs_address,
        nodes=sum(1 for node in ray.nodes() if node["Alive"]),
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        started=started,
    )


def own_cpus() -> int:
    """CPUs of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

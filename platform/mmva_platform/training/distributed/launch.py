"""A run on the cluster: Ray Train runs in its own thread, while the driver logs progress and handles signals.

Ray Train's controller calls the callbacks in its own process; a queue carries their events to the driver. The main
thread stays free: Ctrl-C ends a run at once; SIGTERM, with which schedulers take a machine away, lets the workers save
first. A run whose workers wait for resources has nothing to save and ends at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback  # a DeveloperAPI without a public counterpart
from ray.train.v2.api.config import LoggingConfig
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.draining import drain_on_sigterm
from mmva_platform.settings import Settings
from mmva_platform.training.distributed.worker import train_worker
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory

log = logging.getLogger(__name__)
_MAX_FAILURES: Final = 3
_RESIZE_S: Final = 30.0  # how often an elastic run checks for room for more workers
_POLL_S: Final = 0.5
_QUIET_S: Final = 8.0  # a run logs a line at least this often
_GRACE_S: Final = 20.0  # time to save after SIGTERM; Kubernetes kills after 30 s
_ABORT_S: Final = 5.0
_START_S: Final = 30.0  # time for workers to start when their resources are free
_WORKERLESS: Final = {"InitializingState", "SchedulingState", "ReschedulingState", "RestartingState", "ResizingState"}
Reports = Callable[[list[dict[str, Any]]], None]


class ReportCallback(UserCallback):
    """Runs in the controller: forwards reports and failures; ends the run after an error that a retry would repeat."""

    def __init__(self, events: Queue) -> None:
        self._events = events

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """All workers have reported; the checkpoint, if any, is in storage."""
        self._events.put(("report", metrics))

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:  # noqa: ARG002
        """A worker has failed. Raising ends the run: Ray Train does not retry an error of its callbacks."""
        for rank, error in worker_exceptions.items():
            cause = getattr(error, "_base_exc", error)
            if isinstance(cause, UsageError | CheckFailed | OperationFailed):
                raise cause
            self._events.put(("failure", f"worker {rank} failed ({one_line(cause)})"))


class StateCallback(ControllerCallback):
    """Runs in the controller: forwards its state, and once the controller's handle, with which a run can be aborted."""

    def __init__(self, events: Queue) -> None:
        self._events, self._handle_sent = events, False

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """The state is, for example, SchedulingState while workers wait for resources."""
        if not self._handle_sent:
            self._handle_sent = True
            self._events.put(("controller", ray.get_runtime_context().current_actor))
        if type(previous_state) is not type(current_state):
            decision = getattr(current_state, "scaling_decision", None)
            self._events.put(("state", (type(current_state).__name__, getattr(decision, "num_workers", 0))))


@dataclass(frozen=True)
class Workers:
    """Number of workers of a run, and the resources of each by Ray's names."""

    fewest: int
    most: int
    each: dict[str, float]

    def __str__(self) -> str:
        count = f"{self.most}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        needs = ", ".join(f"{amount:g} {name}" for name, amount in self.each.items())
        return f"{count} worker{'s' * (self.most > 1)} ({needs}{' each' * (self.most > 1)})"


def plan_workers(recipe: Recipe, gpus: float) -> Workers:
    """The recipe's workers on a cluster of so many GPUs at most. Raises UsageError if a step has fewer pairs."""
    fewest, most = (max(1, int(gpus)),) * 2 if recipe.workers == "auto" else recipe.worker_range
    if recipe.batch_size < most:
        raise UsageError(f"batch_size {recipe.batch_size} leaves some of the {most} workers without a pair")
    each = {"CPU": recipe.cpus_per_worker}
    if 1 <= gpus < fewest:
        log.warning("training: %d GPUs for %d workers, so it runs on CPUs; set workers: auto", gpus, fewest)
    return Workers(fewest, most, each | ({"GPU": 1.0} if gpus >= fewest else {}))


class Watch:
    """Logs what a run is doing, one line at least every _QUIET_S."""

    def __init__(self, run: str, workers: Workers) -> None:
        self._run, self._workers = run, workers
        self._state, self._last = "InitializingState", ""
        self._since = self._said = time.monotonic()
        self.waiting = False  # for resources
        self.controller: Any = None

    @property
    def workerless(self) -> bool:
        """Whether no worker runs that could save."""
        return self._state in _WORKERLESS

    def say(self, text: str, level: int = logging.INFO) -> None:
        """Log a line."""
        self._said = time.monotonic()
        log.log(level, "training %s: %s", self._run, text)

    def on_event(self, kind: str, content: Any) -> None:
        """Handle an event of the callbacks."""
        if kind == "controller":
            self.controller = content
        elif kind == "state":
            self.on_state(*content)
        elif kind == "failure":
            self.say(content, logging.WARNING)
        else:
            self._last = f"epoch {content[0]['epoch'] + 1}, {content[0]['done']} steps done"
            if content[0]["rows"]:
                self._said = time.monotonic()  # the epoch's own line is logged elsewhere

    def on_state(self, state: str, workers: int) -> None:
        """Handle a new state of the controller."""
        if self.workerless != (state in _WORKERLESS):
            self._since = time.monotonic()
        self._state, self._last = state, ""
        if state == "RestartingState":
            self.say("continues from its last checkpoint", logging.WARNING)
        elif state == "ResizingState":
            self.say(f"continues from its last checkpoint with {workers} workers")
        elif state == "RunningState" and self.waiting:
            self.waiting = False
            self.say("its workers have their resources")

    def tick(self, free: Callable[[], Mapping[str, float]] = ray.available_resources) -> None:
        """Log a line if there was none for _QUIET_S."""
        now = time.monotonic()
        if now - self._said < _QUIET_S:
            return
        here = {name: free().get(name, 0.0) for name in self._workers.each}
        short = any(here[name] < self._workers.fewest * each for name, each in self._workers.each.items())
        # The free resources may be on several nodes, each too small for a worker.
        if self.workerless and (short or now - self._since > _START_S):
            self.waiting = True
            text = ", ".join(f"{amount:g} {name}" for name, amount in here.items())
            self.say(f"waits for {self._workers}; free in the cluster: {text}", logging.WARNING)
        else:
            self.say(self._last or f"workers are starting or reading data ({now - self._since:.0f} s so far)")


def run_on_ray(
    run: RunDirectory, recipe: Recipe, data: Any, workers: Workers, *, settings: Settings, on_report: Reports
) -> str:
    """Train on the cluster; `on_report` is called in this thread with each report of the workers, one row per rank.

    Returns:
        How the run was stopped, if it could not save; empty if it saved or finished.

    Raises:
        KeyboardInterrupt, SystemExit: On Ctrl-C or a second SIGTERM, after the workers have ended.
        UsageError, CheckFailed, OperationFailed: If a worker raised it, or workers failed too often.
    """
    watch, fit = Watch(run.name, workers), _Fit(run, recipe, data, workers, settings.cluster.stall_timeout_s)
    with drain_on_sigterm(f"training {run.name}: asked to stop; a second SIGTERM ends at once") as stopping:
        fit.start()
        try:
            cut_off = _follow(watch, fit, on_report, stopping)
        except RayError as error:
            raise _explained(run.name, error) from error
        finally:
            with suppress(RayError):
                fit.end(watch)
    if cut_off:
        return f"stopped while it waited for {workers}" if watch.waiting else "stopped"
    if fit.error is not None:
        raise _explained(run.name, fit.error) from fit.error
    return ""


def _follow(watch: Watch, fit: _Fit, on_report: Reports, stopping: Callable[[], bool]) -> bool:
    """Wait for the end of the run; returns whether it must be aborted, because it was asked to stop and cannot save."""
    asked_at: float | None = None
    while True:
        alive = fit.is_alive()  # first, so that the queue has all reports if it has ended
        for kind, content in fit.taken():
            watch.on_event(kind, content)
            if kind == "report":
                on_report(content)
        if not alive:
            return False
        watch.tick()
        if stopping() and asked_at is None:
            asked_at = time.monotonic()
            fit.stop.actor.put.remote("stop")  # without waiting: on a full cluster its process may not have started
        if asked_at is not None and (watch.workerless or time.monotonic() - asked_at > _GRACE_S):
            return True


class _Fit(threading.Thread):
    """Ray Train's fit in a thread, where it handles no signals. An item in `stop` asks the workers to save and end."""

    def __init__(self, run: RunDirectory, recipe: Recipe, data: Any, workers: Workers, stall_s: float) -> None:
        super().__init__(name="ray-train", daemon=True)
        # The queues are on the driver's node, because the run survives the loss of any other.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here}
        self._events, self.stop = Queue(actor_options=options), Queue(actor_options=options)
        self.error: BaseException | None = None
        files, path = run.storage.filesystem()
        use_gpu = "GPU" in workers.each
        self._trainer = TorchTrainer(
            train_worker,
            train_loop_config={"recipe": recipe.model_dump(mode="json"), "data": data, "stop": self.stop},
            torch_config=TorchConfig(
                # Also with GPUs, ranks exchange random states and flags on the CPU.
                backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo",
                timeout_s=int(stall_s),
            ),
            scaling_config=ScalingConfig(
                num_workers=workers.most if workers.fewest == workers.most else (workers.fewest, workers.most),
                use_gpu=use_gpu,
                resources_per_worker=dict(workers.each),
                elastic_resize_monitor_interval_s=_RESIZE_S,
            ),
            run_config=RunConfig(
                name=run.name,
                storage_path=path.rpartition("/")[0],
                storage_filesystem=files,
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=recipe.checkpoint.keep),
                callbacks=[ReportCallback(self._events), StateCallback(self._events)],
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )

    def run(self) -> None:
        """Run in the thread."""
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self.error = error

    def taken(self) -> Iterator[tuple[str, Any]]:
        """The callbacks' events so far; waits a moment for the first one."""
        with suppress(Empty):
            yield self._events.get(timeout=_POLL_S)
            for _ in range(self._events.qsize()):
                yield self._events.get()

    def end(self, watch: Watch) -> None:
        """Abort the controller, and kill it, because it does not answer while it waits for resources."""
        until = time.monotonic() + _ABORT_S
        while self.is_alive() and watch.controller is None and time.monotonic() < until:
            for kind, content in self.taken():
                watch.on_event(kind, content)
        if self.is_alive() and watch.controller is not None:
            with suppress(RayError):
                ray.get(watch.controller.abort.remote(), timeout=_ABORT_S)
            ray.kill(watch.controller)
        self.join(_ABORT_S)
        for queue in (self._events, self.stop):
            queue.shutdown(force=True)


def _explained(run: str, error: BaseException) -> BaseException:
    if isinstance(error, TrainingFailedError):
        cause = getattr(error, "controller_failure", None)
        if isinstance(cause, UsageError | CheckFailed | OperationFailed):
            return cause
        failures = list(getattr(error, "worker_failures", {}).values())
        reason = one_line(getattr(failures[0], "_base_exc", failures[0]) if failures else cause or error)
        return OperationFailed(
            f"training {run}: workers failed more than {_MAX_FAILURES} times ({reason}); fix the cause, then continue "
            f"with --resume {run}"
        )
    if isinstance(error, RayError):
        return OperationFailed(
            f"training {run}: the cluster was lost ({one_line(error)}); continue with --resume {run}"
        )
    return error


def one_line(error: BaseException) -> str:
    """An error's type and text on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]

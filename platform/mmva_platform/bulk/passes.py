"""A pass: rounds of a Ray Data pipeline until every shard is done or has failed for good."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from mmva_platform.bulk.actor import ROW, ShardActor
from mmva_platform.bulk.attempt import ShardWorker
from mmva_platform.bulk.failures import Failures, StalledError, StoppedError, nodes_by_id
from mmva_platform.bulk.monitor import HEARTBEAT_S, InFlight, Monitor
from mmva_platform.bulk.resources import Resources, Stage, actors_that_fit, check_feasible, most_actors
from mmva_platform.settings import ClusterSettings, Settings

logger = logging.getLogger(__name__)

_TICK_S: Final = 1.0
_IN_FLIGHT: Final = 2  # shards of an actor: the one that it runs and the next, so that it never waits for the driver
_END: Final = object()
_END_LIMIT_S: Final = 30.0
_BUILDING = threading.Lock()


def run_pass(
    shards: Sequence[Mapping[str, Any]],
    worker: Callable[..., ShardWorker],
    *,
    stage: str,
    settings: Settings,
    on_result: Callable[[Any], None],
    kwargs: Mapping[str, Any] | None = None,
    resources: Resources | None = None,
    before: Stage | None = None,
    step_limit_s: float | None = None,
    stopping: Callable[[], bool] = lambda: False,
    on_heartbeat: Callable[[Sequence[InFlight]], None] = lambda _in_flight: None,
) -> None:
    """Run every shard; results arrive one by one in this thread, in no order. Needs a Ray session.

    Each shard is a picklable mapping with a unique name under "shard". `worker` is an importable class; each actor
    constructs it once, with `kwargs`. `stage` is the name in errors and logs. An exception of `on_result` ends the
    pass. `resources` are those of an actor, one CPU by default. `before` is an earlier stage with its own actors;
    `worker` gets its result, a mapping, instead of the shard: CPUs decode for GPUs. `step_limit_s` is the longest step
    of a worker (see Attempt.step), by default settings.cluster.stall_timeout_s. `stopping` is called every second; once
    it returns True, shards in flight finish and no other begins. `on_heartbeat` gets the shards in flight every few
    seconds.

    Raises UsageError if not even one actor fits the cluster, the worker's own error if every shard failed,
    ShardsFailedError if shards failed on every attempt (the others are done), StoppedError after `stopping` if shards
    are left, StalledError if nothing can run for settings.cluster.stall_timeout_s, or .start_timeout_s if nodes start
    on demand.
    """
    if not shards:
        return
    stages = [*([before] if before else []), Stage(worker, kwargs or {}, resources or Resources())]
    limit_s = step_limit_s or settings.cluster.stall_timeout_s
    pass_ = _Pass(stage, stages, settings.cluster, step_limit_s=limit_s, shards=len(shards), on_heartbeat=on_heartbeat)
    pass_.run({str(shard["shard"]): dict(shard) for shard in shards}, on_result, stopping)


class _Pass:
    """The state of one pass in the driver."""

    def __init__(
        self,
        name: str,
        stages: Sequence[Stage],
        settings: ClusterSettings,
        *,
        step_limit_s: float,
        shards: int,
        on_heartbeat: Callable[[Sequence[InFlight]], None],
    ) -> None:
        self._name, self._stages, self._settings, self._total = name, stages, settings, shards
        self._step_limit_s, self._on_heartbeat = step_limit_s, on_heartbeat
        self._failures = Failures(name, shards, settings.max_attempts)
        self._done = 0
        self._executors = _Executors()
        self._reader: threading.Thread | None = None
        for stage in stages:
            check_feasible(stage.resources, settings, _node_resources())
        self._monitor = _start_monitor(settings.stall_timeout_s)

    def run(
        self, shards: Mapping[str, dict[str, Any]], on_result: Callable[[Any], None], stopping: Callable[[], bool]
    ) -> None:
        """Repeat rounds until no failed shard is to be tried again."""
        import ray

        todo = dict.fromkeys(shards, 1)
        try:
            while todo:
                self._round(self._rows(shards, todo), on_result, stopping)
                todo = self._failures.to_retry(self._usable_nodes())
        finally:
            self._executors.shut_down()  # nothing else ends a pipeline that waits for actors
            ray.kill(self._monitor)  # without the monitor, no actor begins another shard
            if self._reader is not None:
                self._reader.join(_END_LIMIT_S)
        self._failures.raise_if_any()

    def _round(
        self, rows: list[dict[str, Any]], on_result: Callable[[Any], None], stopping: Callable[[], bool]
    ) -> None:
        from ray import cloudpickle

        avoid = self._failures.bad_nodes(self._usable_nodes())
        skipped = 0
        for row in self._outcomes(rows, avoid, stopping):
            if row["skipped"]:
                skipped += 1
            elif row["error"] is not None:
                self._take_failure(row)
            else:
                self._done += 1
                self._failures.succeeded(row["shard"])
                on_result(cloudpickle.loads(row["value"]))
        if skipped:
            raise StoppedError(
                f"{self._name}: stopped on request after {self._done} of {self._total} shards; committed shards "
                "stay, the same command resumes"
            )

    def _take_failure(self, row: Mapping[str, Any]) -> None:
        from ray import cloudpickle

        error = cloudpickle.loads(row["error"])
        text = " ".join(str(error).split())[:500] or type(error).__name__
        logger.warning(
            "%s: shard %s, attempt %d, failed on node %s: %s",
            *(self._name, row["shard"], row["attempt"], row["node"][:12], text),
        )
        self._failures.failed(row["shard"], row["node"], error, len(self._usable_nodes()))

    def _usable_nodes(self) -> set[str]:
        import ray

        last = self._stages[-1].resources
        needed = {name: amount for name, amount in (("CPU", last.cpus), ("GPU", last.gpus)) if amount}
        return nodes_by_id(ray.nodes(), needed)

    def _rows(self, shards: Mapping[str, dict[str, Any]], todo: Mapping[str, int]) -> list[dict[str, Any]]:
        from ray import cloudpickle

        empty = {"node": None, "skipped": False, "error": None}
        return [
            empty | {
                "shard": name,
                "attempt": number,
                "items_at_fault": number > 1 and self._failures.any_succeeded,
                "value": cloudpickle.dumps(shards[name]),
            }
            for name, number in todo.items()
        ]  # fmt: skip

    def _outcomes(
        self, rows: list[dict[str, Any]], avoid: set[str], stopping: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        """Rows of the pipeline as they arrive; checks for stops and stalls between them."""
        arrived: queue.Queue[Any] = queue.Queue()
        dataset = _pipeline(rows, [self._operator(stage, len(rows), avoid) for stage in self._stages], self._executors)
        self._reader = threading.Thread(target=_read, args=(dataset, arrived), daemon=True)
        self._reader.start()
        moved, checked = time.monotonic(), 0.0
        stopped = False
        while True:
            try:
                row = arrived.get(timeout=_TICK_S)
            except queue.Empty:
                row = None
            if row is _END:
                return
            if isinstance(row, BaseException):
                raise row
            if row is not None:
                moved = time.monotonic()
                yield row
            if not stopped and stopping():
                stopped = True
                self._monitor.stop.remote()
            if time.monotonic() - checked > HEARTBEAT_S:
                checked = time.monotonic()
                if self._in_flight():
                    moved = checked
                self._check_stall(checked - moved)

    def _in_flight(self) -> list[InFlight]:
        import ray

        found: list[InFlight] = ray.get(self._monitor.check.remote())
        self._on_heartbeat(found)
        return found

    def _check_stall(self, seconds: float) -> None:
        grows = self._settings.max_cpus is not None or self._settings.max_gpus is not None
        limit_s = self._settings.start_timeout_s if grows else self._settings.stall_timeout_s
        if seconds < limit_s:
            return
        import ray

        wanted = " and ".join(
            f"{stage.resources.cpus:g} CPU" + (f" with {stage.resources.gpus:g} GPU" if stage.resources.gpus else "")
            for stage in self._stages
        )
        free = ray.available_resources()
        raise StalledError(
            f"{self._name}: no worker ran for {seconds:.0f} s at {self._done} of {self._total} shards; a worker needs "
            f"{wanted}, the cluster has {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free"
        )

    def _operator(self, stage: Stage, shards: int, avoid: set[str]) -> dict[str, Any]:
        """Arguments of Dataset.map_batches for a stage."""
        from ray.data import ActorPoolStrategy

        most = min(shards, most_actors(stage.resources, self._settings) or shards)
        fit = max(1, min(most, actors_that_fit(stage.resources, _node_resources())))
        label = {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"} if avoid else None
        return {
            "fn": ShardActor,
            "fn_constructor_kwargs": {
                "worker": stage.worker,
                "kwargs": dict(stage.kwargs),
                "stage": f"{self._name}:{getattr(stage.worker, '__name__', 'worker')}",
                "monitor": self._monitor,
                "step_limit_s": self._step_limit_s,
            },
            "compute": ActorPoolStrategy(
                min_size=1, initial_size=fit, max_size=most, max_tasks_in_flight_per_actor=_IN_FLIGHT
            ),
            "num_cpus": stage.resources.cpus,
            "num_gpus": stage.resources.gpus or None,
            "batch_size": 1,
            "batch_format": "pyarrow",
            "label_selector": label,
        }


def _pipeline(rows: list[dict[str, Any]], operators: Sequence[dict[str, Any]], executors: _Executors) -> Any:
    """One row = one block = one shard; one actor pool for each stage."""
    import ray.data

    from mmva_platform.cluster import quiet_ray_data

    quiet_ray_data()
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = None  # a row is never split
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [executors.callback()]
    # The current context belongs to the process, and another thread may begin a pass at the same time.
    with _BUILDING, ray.data.DataContext.current(context):
        tables = [ROW.empty_table().from_pylist([row], schema=ROW) for row in rows]
        dataset = ray.data.from_arrow(tables)
        for operator in operators:
            dataset = dataset.map_batches(**operator)
    return dataset


class _Executors:
    """Executors of a pass's pipelines. They pickle empty, because Ray sends the context with them to its workers."""

    def __init__(self) -> None:
        self._running: list[Any] = []

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return _Executors, ()

    def callback(self) -> Any:
        """Return a callback class of Ray Data that notes the executor of a pipeline when it starts."""
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        running = self

        class Noted(ExecutionCallback):
            def before_execution_starts(self, executor: Any) -> None:
                running._running.append(executor)

        return Noted

    def shut_down(self) -> None:
        """End the pipelines that still run."""
        for executor in self._running:
            executor.shutdown(force=False)


def _read(dataset: Any, arrived: queue.Queue[Any]) -> None:
    """Put the pipeline's rows into a queue, then _END, or else the error that Ray raised."""
    import ray

    try:
        for bundle in dataset.iter_internal_ref_bundles():
            for block in ray.get(bundle.block_refs):
                for row in block.to_pylist():
                    arrived.put(row)
        arrived.put(_END)
    except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
        arrived.put(error)


def _start_monitor(heartbeat_timeout_s: float) -> Any:
    """Start the monitor, on this process's node if possible. If its node is lost, it restarts elsewhere, empty."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(**options)(Monitor).remote(heartbeat_timeout_s)


def _node_resources() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]

"""The actors of Ray Data: their input is a row that names a shard, their output a row with its result or error."""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

import pyarrow as pa

from mmva.errors import CheckFailed, EnvironmentFault, MediaError, OperationFailed, UsageError
from mmva_platform.bulk.attempt import Attempt, ShardWorker
from mmva_platform.bulk.monitor import HEARTBEAT_S

_EXPECTED: Final = (UsageError, CheckFailed, OperationFailed, MediaError)
_LONGEST_PAUSE_S: Final = 30.0

# A row of the pipeline. `value` is first the shard's arguments, then the result of each stage; `error` is the exception
# of a failed attempt. Both are pickled, and never leave the cluster.
ROW: Final = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("items_at_fault", pa.bool_(), nullable=False),
        pa.field("node", pa.string()),  # where the last stage ran
        pa.field("skipped", pa.bool_(), nullable=False),  # the pass was stopped before the shard began
        pa.field("value", pa.large_binary()),
        pa.field("error", pa.large_binary()),
    ]
)


class ShardActor:
    """Runs shards through one worker, one after another. Every outcome is a row: an error must not end the pipeline."""

    def __init__(
        self,
        worker: Callable[..., ShardWorker],
        kwargs: Mapping[str, Any],
        *,
        stage: str,
        monitor: Any,
        step_limit_s: float,
    ) -> None:
        """Do not construct the worker yet: errors of its constructor must become rows, too."""
        import ray

        self._worker_class, self._kwargs = worker, kwargs
        self._worker: ShardWorker | None = None
        self._stage, self._monitor, self._step_limit_s = stage, monitor, step_limit_s
        context = ray.get_runtime_context()
        self._node, self._handle = context.get_node_id(), context.current_actor
        self._has_gpu, self._gpu_lost = bool(ray.get_gpu_ids()), False
        self._failures = 0
        self._now: tuple[tuple[str, str], Attempt] | None = None
        threading.Thread(target=self._send_heartbeats, daemon=True).start()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Run the one shard of the batch (ROW); a row that failed in an earlier stage passes through."""
        if self._gpu_lost:
            os._exit(1)  # a CUDA context never recovers: Ray starts another process, which runs this shard
        (row,) = batch.to_pylist()
        if row["error"] is None and not row["skipped"]:
            row |= self._outcome(row) | {"node": self._node}
        return pa.Table.from_pylist([row], schema=ROW)

    def _outcome(self, row: Mapping[str, Any]) -> dict[str, Any]:
        import ray

        key = (self._stage, row["shard"])
        try:
            deaths, stop = ray.get(self._monitor.begin.remote(key, self._node, os.getpid(), self._handle))
        except ray.exceptions.RayActorError:  # the pass or its driver has ended
            stop = True
        if stop:
            return {"skipped": True, "value": None}
        attempt = Attempt(row["attempt"], deaths, items_at_fault=row["items_at_fault"], step_limit_s=self._step_limit_s)
        self._now = (key, attempt)
        try:
            with attempt:
                value = self._run(ray.cloudpickle.loads(row["value"]), attempt)
            self._failures = 0
            return {"value": ray.cloudpickle.dumps(value)}
        except Exception as error:  # noqa: BLE001 - one shard's error must not end the pipeline
            self._failures += 1
            self._gpu_lost = self._has_gpu and isinstance(error, EnvironmentFault)
            # A node that fails at once would otherwise take all shards before a good one has finished its first.
            time.sleep(min(_LONGEST_PAUSE_S, 2.0 ** (self._failures - 2)))
            return {"value": None, "error": _pickled(error)}
        finally:
            self._now = None
            with contextlib.suppress(ray.exceptions.RayActorError):
                ray.get(self._monitor.end.remote(key))

    def _run(self, shard: dict[str, Any], attempt: Attempt) -> Any:
        if self._worker is None:
            attempt.step("load")
            self._worker = self._worker_class(**self._kwargs)
            # One intra-op thread per actor: two in one process gave under half the throughput of two processes.
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)
        return self._worker(shard, attempt)

    def _send_heartbeats(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            now = self._now
            if now is not None:
                key, attempt = now
                self._monitor.beat.remote(key, os.getpid(), attempt.stage, attempt.done)


def _pickled(error: Exception) -> bytes:
    """An exception for the driver; an unexpected one brings its traceback as a note."""
    from ray import cloudpickle

    if not isinstance(error, _EXPECTED):
        error.add_note("in a worker:\n" + "".join(traceback.format_exception(error)))
    try:
        data: bytes = cloudpickle.dumps(error.with_traceback(None))
        cloudpickle.loads(data)
    except Exception:  # noqa: BLE001 - of an exception that cannot be pickled, only the text is passed on
        data = cloudpickle.dumps(OperationFailed(f"{type(error).__name__}: {error}"))
    return data

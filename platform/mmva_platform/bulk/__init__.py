"""Run a pass over shards: a Ray Data pipeline in which each row is a shard.

    class Worker:                                   # constructed once in each actor
        def __init__(self, out: Storage) -> None: ...
        def __call__(self, shard: dict[str, Any], attempt: Attempt) -> Any: ...   # a small, picklable result

    run_pass(shards, Worker, kwargs={"out": out}, stage="embed", settings=settings, on_result=collect)

A worker commits its own output, idempotently, because a shard may run more than once: its actor may die, its node may
be lost, and a failed shard is tried again on other nodes. Results are small; the driver never sees the data.
"""

from mmva_platform.bulk.attempt import ISOLATE_AFTER, Attempt, ShardWorker
from mmva_platform.bulk.failures import ShardsFailedError, StalledError, StoppedError
from mmva_platform.bulk.monitor import InFlight
from mmva_platform.bulk.passes import run_pass
from mmva_platform.bulk.resources import Resources, Stage

__all__ = [
    "ISOLATE_AFTER", "Attempt", "InFlight", "Resources", "ShardWorker", "ShardsFailedError", "Stage", "StalledError",
    "StoppedError", "run_pass",
]  # fmt: skip

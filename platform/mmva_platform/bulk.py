"""The one way to run a pass over shards: a Ray Data pipeline in which each row is a shard.

    class Worker:                                   # constructed once in each actor
        def __init__(self, out: Storage) -> None: ...
        def __call__(self, shard: dict[str, Any], attempt: Attempt) -> Any: ...   # a small, picklable result

    run_pass(shards, Worker, kwargs={"out": out}, stage="embed", settings=settings, on_result=collect)

A worker commits its own output, idempotently, because a shard may run more than once: its actor may die, its node may
be lost, and a shard that fails is tried again on other nodes. Results are small; the driver never sees the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mmva_platform.settings import Settings


class Attempt(Protocol):
    """One try at one shard, as its worker sees it.

    Attributes:
        number: 1 for the first try. Only a try that ended in an error counts, not one whose node was lost.
        deaths: How often a worker process died or hung while it had this shard, in this run of the driver, on a node
            that is still alive. From ISOLATE_AFTER on a worker must run the shard's items in a process that may die.
        items_at_fault: True if other shards of this pass succeeded and this one failed before with EnvironmentFault: a
            fault that all items of the shard share is then taken for the items' own.
    """

    number: int
    deaths: int
    items_at_fault: bool

    def step(self, stage: str, done: int = 0) -> None:
        """Report progress: a step such as "fetch" or "infer" begins, with `done` items finished. Cheap; call it often.

        A shard without a step for settings.cluster.stall_timeout_s is taken for hung: its worker is killed.
        """


class ShardWorker(Protocol):
    """What an actor of a pass runs."""

    def __call__(self, shard: dict[str, Any], attempt: Attempt) -> Any:
        """Run one shard and return its (small, picklable) result. Raise to have it tried again elsewhere."""


ISOLATE_AFTER = 2


@dataclass(frozen=True)
class Resources:
    """What one actor of a pass reserves, and how many there may be. Without a maximum the pool follows the cluster."""

    cpus: float = 1.0
    gpus: float = 0.0
    min_workers: int = 1
    max_workers: int | None = None


def run_pass(
    shards: Sequence[Mapping[str, Any]],
    worker: Callable[..., ShardWorker],
    *,
    stage: str,
    settings: Settings,
    on_result: Callable[[Any], None],
    kwargs: Mapping[str, Any] | None = None,
    resources: Resources | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Run every shard; results arrive one by one in this thread, in no order. Needs a Ray session.

    Args:
        shards: Picklable mappings, each with a unique name under "shard".
        worker: Importable class whose objects run a shard; constructed once in each actor.
        stage: Name for errors and for Ray's dashboard, such as "embed".
        settings: cluster.* bounds workers, attempts and waits.
        on_result: Called with each result; what it raises ends the pass.
        kwargs: For `worker`.
        resources: Of an actor; one CPU by default.
        stopping: Asked every second; once it returns True, shards under way are finished and no other begins.

    Raises:
        UsageError, CheckFailed, OperationFailed, MediaError: The worker's own error, if nothing but errors came back.
        ShardsFailedError: If shards failed on every attempt; the others are done.
        StoppedError: After `stopping`, if shards are left.
        StalledError: If nothing can run for settings.cluster.stall_timeout_s.
    """
    raise NotImplementedError

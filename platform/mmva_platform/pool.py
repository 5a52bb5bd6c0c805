"""Shards through a pool of Ray actors: results as they are made, dead workers replaced, what stands still failed.

Ray's own actors and not Ray Data: whichever actor is free takes the next shard, so there is nothing to plan ahead,
and its start costs more than Ray's (benchmarks/README.md).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError
from mmva_platform.cluster import CPUS_PER_ACTOR, check_feasible, default_workers

_EXPECTED_ERRORS = (UsageError, CheckFailed, OperationFailed, MediaError)
_IN_FLIGHT: Final = 2  # shards an actor holds: the one it works on, and the next, so that it never waits for the driver


class StalledError(OperationFailed):
    """A job made no progress for too long; the message names its stage."""

    def __init__(self, stage: str, done: int, total: int, seconds: float) -> None:
        super().__init__(f"{stage}: no progress for {seconds:g} s at {done} of {total} shards; see Ray's logs")
        self.stage, self.done, self.total, self.seconds = stage, done, total, seconds

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the constructor's arguments."""
        return type(self), (self.stage, self.done, self.total, self.seconds)


def run_shards(
    items: Sequence[Mapping[str, Any]],
    worker_class: Callable[..., Callable[[dict[str, Any]], Any]],
    *,
    stage: str,
    on_result: Callable[[Any], None],
    constructor_kwargs: Mapping[str, Any] | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    stall_timeout_s: float = 300.0,
    sign_of_life: Callable[[], object] = lambda: None,
) -> None:
    """Run every item through a pool of actors; results come one by one, as they are made, in no order.

    Each actor constructs `worker_class(**constructor_kwargs)` once, at its first item, and calls it with an item at a
    time; it has half a logical CPU and one thread. An actor that dies is replaced and its item run again, so a worker
    must commit its output in a way that bears repetition. Actors that the cluster has no place for yet join later.
    Needs a Ray session.

    Args:
        items: Picklable mappings, one a shard.
        worker_class: Importable class (or factory) whose objects take an item and return a picklable result.
        stage: Name for errors, such as "embed image".
        on_result: Called in this thread with every result; what it raises ends the run.
        constructor_kwargs: For worker_class.
        workers: Actors; default_workers() when None. Never more than there are items.
        gpus_per_worker: Share of a GPU that each of them holds.
        stall_timeout_s: Longest wait for a next result.
        sign_of_life: Asked when a wait was that long; whatever differs from the last time is progress too.

    Raises:
        UsageError, CheckFailed, OperationFailed, MediaError: As raised by the worker, without Ray's wrapping.
        StalledError: If nothing arrived for stall_timeout_s, nor any other sign of life.
    """
    if not items:
        return
    count = min(workers or default_workers(gpus_per_worker), len(items))
    check_feasible(count, gpus_per_actor=gpus_per_worker)
    with _actors(count, gpus_per_worker, worker_class, dict(constructor_kwargs or {})) as actors:
        for result in _results(actors, items, stage, stall_timeout_s, sign_of_life):
            if isinstance(result, _Failure):
                raise result.error
            on_result(result)


@dataclass(frozen=True)
class _Failure:
    """An expected error on its way from a worker to the driver."""

    error: BaseException


class _ShardActor:
    """Runs in the pool: makes the worker at the first item, hands it one item after another."""

    def __init__(self, worker_class: Callable[..., Callable[[dict[str, Any]], Any]], kwargs: dict[str, Any]) -> None:
        self._worker_class = worker_class
        self._kwargs = kwargs
        self._worker: Callable[[dict[str, Any]], Any] | None = None

    def ready(self) -> None:
        """Answers as soon as the cluster has a place for the actor."""

    def run(self, item: dict[str, Any]) -> Any:
        try:
            if self._worker is None:  # here and not in __init__, so that its errors take the same way home
                self._worker = self._worker_class(**self._kwargs)
                _one_thread()
            return self._worker(item)
        except _EXPECTED_ERRORS as error:
            return _Failure(error)


@contextlib.contextmanager
def _actors(
    count: int, gpus: float, worker_class: Callable[..., Callable[[dict[str, Any]], Any]], kwargs: dict[str, Any]
) -> Iterator[list[Any]]:
    """Actors for the length of a block; gone after it, whatever they were doing."""
    import ray

    resources = {"num_cpus": CPUS_PER_ACTOR, "num_gpus": gpus}
    remote = ray.remote(max_restarts=-1, max_task_retries=-1, **resources)(_ShardActor)
    shared = ray.put(kwargs)
    actors = [remote.remote(worker_class, shared) for _ in range(count)]
    try:
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def _results(
    actors: Sequence[Any],
    items: Sequence[Mapping[str, Any]],
    stage: str,
    timeout_s: float,
    sign_of_life: Callable[[], object],
) -> Iterator[Any]:
    """Results of all items; each actor holds _IN_FLIGHT of them at a time."""
    import ray

    waiting = iter(items)
    pending: dict[Any, tuple[Any, bool]] = {actor.ready.remote(): (actor, False) for actor in actors}
    done, sign = 0, sign_of_life()
    while done < len(items):
        finished, _ = ray.wait(list(pending), timeout=timeout_s)
        if not finished:
            before, sign = sign, sign_of_life()
            if sign != before:
                continue
            raise StalledError(stage, done, len(items), timeout_s)
        actor, is_result = pending.pop(finished[0])
        result = _get(finished[0])
        for _ in range(1 if is_result else _IN_FLIGHT):
            if (item := next(waiting, None)) is not None:
                pending[actor.run.remote(dict(item))] = (actor, True)
        if is_result:
            done += 1
            yield result


def _get(reference: Any) -> Any:
    """A result; a bug in a worker comes as the exception it is, with the worker's traceback as its cause."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.as_instanceof_cause() from error


def _one_thread() -> None:
    """One intra-op thread an actor: two in one process gave under half the throughput of two processes."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

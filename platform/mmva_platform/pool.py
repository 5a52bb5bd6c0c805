"""Shards through a pool of Ray actors: results as they are made, dead workers replaced, what stands still failed.

Ray's own actors and not Ray Data: whichever actor is free takes the next shard, so there is nothing to plan ahead,
and its start costs more than Ray's (benchmarks/README.md).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError
from mmva_platform.cluster import CPUS_PER_ACTOR, check_feasible, default_workers

_EXPECTED_ERRORS = (UsageError, CheckFailed, OperationFailed, MediaError)
_IN_FLIGHT: Final = 2  # shards an actor holds: the one it works on, and the next, so that it never waits for the driver
_TAKEN_BACK: Final = object()
_LOOK_S: Final = 1.0  # how long a request to stop may wait for an answer


class StalledError(OperationFailed):
    """A job made no progress for too long; the message names its stage."""

    def __init__(self, stage: str, done: int, total: int, seconds: float) -> None:
        super().__init__(f"{stage}: no progress for {seconds:g} s at {done} of {total} shards; see Ray's logs")
        self.stage, self.done, self.total, self.seconds = stage, done, total, seconds

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the constructor's arguments."""
        return type(self), (self.stage, self.done, self.total, self.seconds)


class StoppedError(OperationFailed):
    """A job was asked to stop, and has finished what was under way."""

    def __init__(self, stage: str, done: int, total: int) -> None:
        super().__init__(
            f"{stage}: stopped on request after {done} of {total} shards; what is committed stays, the same command "
            "goes on from there"
        )
        self.stage, self.done, self.total = stage, done, total

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the constructor's arguments."""
        return type(self), (self.stage, self.done, self.total)


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
    stopping: Callable[[], bool] = lambda: False,
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
        stopping: Asked every second; once it says yes, actors finish the item they are at and get no other.

    Raises:
        UsageError, CheckFailed, OperationFailed, MediaError: As raised by the worker, without Ray's wrapping.
        StoppedError: After `stopping`, if items are left.
        StalledError: If nothing arrived for stall_timeout_s, nor any other sign of life.
    """
    if not items:
        return
    count = min(workers or default_workers(gpus_per_worker), len(items))
    check_feasible(count, gpus_per_actor=gpus_per_worker)
    with _actors(count, gpus_per_worker, worker_class, dict(constructor_kwargs or {})) as actors:
        life = _Life(stage, len(items), stall_timeout_s, sign_of_life)
        for result in _results(actors, items, life, stopping):
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
    actors: Sequence[Any], items: Sequence[Mapping[str, Any]], life: _Life, stopping: Callable[[], bool]
) -> Iterator[Any]:
    """Results of all items; each actor holds _IN_FLIGHT of them at a time."""
    waiting = iter(items)
    pending: dict[Any, tuple[Any, bool]] = {actor.ready.remote(): (actor, False) for actor in actors}
    done, stopped = 0, False
    while done < len(items):
        if not stopped and stopping():
            stopped, waiting = True, iter(())
            pending = _taken_back(pending)
        if stopped and not pending:
            raise StoppedError(life.stage, done, len(items))
        finished = _finished(pending, min(_LOOK_S, life.timeout_s))
        if finished is None:
            life.check(done)
            continue
        life.renew()
        actor, is_result = pending.pop(finished)
        result = _get(finished)
        if result is _TAKEN_BACK:
            continue
        for _ in range(1 if is_result else _IN_FLIGHT):
            if (item := next(waiting, None)) is not None:
                pending[actor.run.remote(dict(item))] = (actor, True)
        if is_result:
            done += 1
            yield result


class _Life:
    """Ends a job in which nothing happens."""

    def __init__(self, stage: str, total: int, timeout_s: float, sign_of_life: Callable[[], object]) -> None:
        self.stage, self._total, self.timeout_s, self._ask = stage, total, timeout_s, sign_of_life
        self._sign = sign_of_life()
        self.renew()

    def renew(self) -> None:
        """Something happened."""
        self._since = time.monotonic()

    def check(self, done: int) -> None:
        """StalledError when nothing has happened for too long."""
        if time.monotonic() - self._since < self.timeout_s:
            return
        before, self._sign = self._sign, self._ask()
        if self._sign == before:
            raise StalledError(self.stage, done, self._total, self.timeout_s)
        self.renew()


def _finished(pending: Mapping[Any, Any], timeout_s: float) -> Any | None:
    """One that has finished, if any does within so many seconds."""
    import ray

    finished, _ = ray.wait(list(pending), timeout=timeout_s)
    return finished[0] if finished else None


def _taken_back(pending: Mapping[Any, tuple[Any, bool]]) -> dict[Any, tuple[Any, bool]]:
    """Take back what no actor is at yet, and wait for no actor that has no place; what is left to wait for.

    An item that was taken back too late, because its actor has just begun it, comes to its result like any other.
    """
    import ray

    busy = set()
    for reference, (actor, is_result) in pending.items():  # in the order in which they were handed out
        if is_result and actor in busy:
            ray.cancel(reference)
        elif is_result:
            busy.add(actor)
    return {reference: (actor, True) for reference, (actor, is_result) in pending.items() if is_result}


def _get(reference: Any) -> Any:
    """A result, or _TAKEN_BACK; a bug comes as the exception it is, with the worker's traceback as its cause."""
    import ray
    from ray.exceptions import RayTaskError, TaskCancelledError

    try:
        return ray.get(reference)
    except TaskCancelledError:
        return _TAKEN_BACK
    except RayTaskError as error:
        raise error.as_instanceof_cause() from error


def _one_thread() -> None:
    """One intra-op thread an actor: two in one process gave under half the throughput of two processes."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

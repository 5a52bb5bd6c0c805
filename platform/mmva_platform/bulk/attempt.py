"""One attempt at a shard, as its worker sees it."""

from __future__ import annotations

from typing import Any, Final, Protocol, Self

from mmva.errors import OperationFailed
from mmva.inference.isolation import TimeLimit

ISOLATE_AFTER: Final = 2  # worker deaths: one may be chance, two are probably caused by an item
GIVE_UP_AFTER: Final = 4


class ShardWorker(Protocol):
    """The interface of what an actor of a pass runs."""

    def __call__(self, shard: dict[str, Any], attempt: Attempt) -> Any:
        """Run one shard and return its (small, picklable) result. After an exception the shard is tried again."""


class Attempt:
    """One attempt at a shard; a context manager for the duration of the work.

    `number` is 1 for the first attempt; only attempts that end in an error count, not those of lost nodes. `deaths`
    counts worker processes that died or were killed for hanging while they ran this shard, on nodes that are still
    alive. From ISOLATE_AFTER deaths on, a worker must run the shard's items in a child process. `items_at_fault` is
    True if this shard failed before and others succeeded: an error of all its items is then caused by the items.
    `stage` is the last reported step, `done` the number of finished items.
    """

    def __init__(
        self, number: int = 1, deaths: int = 0, *, items_at_fault: bool = False, step_limit_s: float = 300.0
    ) -> None:
        self.number, self.deaths, self.items_at_fault = number, deaths, items_at_fault
        self.stage, self.done = "start", 0
        self._limit = TimeLimit(step_limit_s)

    def __enter__(self) -> Self:
        if self.deaths >= GIVE_UP_AFTER:
            raise OperationFailed(f"its worker process died {self.deaths} times; see the logs of Ray's workers")
        self._limit.__enter__()
        return self

    def step(self, stage: str, done: int | None = None) -> None:
        """Report that a step such as "decode" or "infer" begins, with `done` items finished. Cheap: call it often.

        A step that takes longer than the limit ends this process, and the shard runs again; see TimeLimit. The steps
        "fetch" and "load" have no limit.
        """
        self.stage, self.done = stage, self.done if done is None else done
        self._limit.step(stage)

    def __exit__(self, *exception: object) -> None:
        self._limit.__exit__(*exception)

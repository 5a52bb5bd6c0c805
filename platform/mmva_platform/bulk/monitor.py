"""Tracks which worker runs which shard, and whether it is alive: one Ray actor for each pass, on the driver's node.

A worker that dies leaves no message. The monitor knows its shard and informs the shard's next worker. It ends with the
driver: a killed driver or a lost node never counts against a shard.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

HEARTBEAT_S: Final = 5.0


@dataclass(frozen=True)
class InFlight:
    """A shard that a worker runs now."""

    shard: str
    node: str
    step: str
    done: int
    seconds: float


@dataclass
class _Holder:
    node: str
    pid: int
    actor: Any
    since: float
    beat_at: float
    step: str = "start"
    done: int = 0


class Monitor:
    """State of a pass; run as an actor without CPUs."""

    def __init__(self, heartbeat_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._clock = heartbeat_timeout_s, clock
        self._holders: dict[tuple[str, str], _Holder] = {}
        self._deaths: dict[tuple[str, str], int] = {}
        self._stopping = False

    def begin(self, key: tuple[str, str], node: str, pid: int, actor: Any) -> tuple[int, bool]:
        """Note that a worker begins a shard of a stage. Returns how many workers died at it, and whether to skip it.

        An earlier process died if it never ended its shard although its node is alive, and another process now begins
        the same shard, or the restarted actor begins another one. A shard is skipped once the pass is being stopped.
        """
        dead = {
            other: holder
            for other, holder in self._holders.items()
            if (other == key or holder.actor == actor) and (holder.node, holder.pid) != (node, pid)
        }
        for other, holder in dead.items():
            del self._holders[other]
            if _is_alive(holder.node):
                self._deaths[other] = self._deaths.get(other, 0) + 1
        if not self._stopping:
            self._holders[key] = _Holder(node, pid, actor, since=self._clock(), beat_at=self._clock())
        return self._deaths.get(key, 0), self._stopping

    def beat(self, key: tuple[str, str], pid: int, step: str, done: int) -> None:
        """Note that a worker is alive, at this step of its shard, with so many items done."""
        holder = self._holders.get(key)
        if holder is not None and holder.pid == pid:
            holder.beat_at, holder.step, holder.done = self._clock(), step, done

    def end(self, key: tuple[str, str]) -> None:
        """Note that a worker has ended its shard, done or failed."""
        self._holders.pop(key, None)

    def stop(self) -> None:
        """Let no worker begin another shard."""
        self._stopping = True

    def check(self) -> list[InFlight]:
        """Return the shards in flight; kill workers without a heartbeat for too long: their shards run again."""
        now = self._clock()
        for holder in self._holders.values():
            if now - holder.beat_at > self._timeout_s:
                _kill(holder.actor)
                holder.beat_at = now
        return [
            InFlight(shard, holder.node, holder.step, holder.done, now - holder.since)
            for (_, shard), holder in self._holders.items()
        ]


def _kill(actor: Any) -> None:
    import ray

    ray.kill(actor, no_restart=False)


def _is_alive(node: str) -> bool:
    import ray

    return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())

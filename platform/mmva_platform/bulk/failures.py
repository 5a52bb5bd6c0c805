"""Decides which failed shards are tried again, and when a pass gives up."""

from collections.abc import Mapping
from typing import Any, Final

from mmva.errors import CheckFailed, OperationFailed, UsageError

_MOST_FAILED: Final = 0.2  # a pass stops early if a larger share of its attempts fails ...
_SMALLEST_SAMPLE: Final = 10  # ... and at least this many have failed
_FEW: Final = 3


class ShardsFailedError(OperationFailed):
    """Shards failed on every attempt; the message names one of them, its node and its cause."""


class StalledError(OperationFailed):
    """No shard of a pass could run for too long; the message says what the pass waits for."""


class StoppedError(OperationFailed):
    """A pass was stopped on request, after finishing the shards in flight."""


class Failures:
    """The failed attempts of a pass; a shard has failed after `max_attempts` of them."""

    def __init__(self, stage: str, shards: int, max_attempts: int) -> None:
        self._stage, self._shards, self._max_attempts = stage, shards, max_attempts
        self._errors: dict[str, BaseException] = {}
        self._attempts: dict[str, int] = {}
        self._nodes: dict[str, set[str]] = {}
        self._succeeded = self._failed = 0

    @property
    def any_succeeded(self) -> bool:
        """Whether at least one shard is done."""
        return self._succeeded > 0

    def succeeded(self, shard: str) -> None:
        """A shard is done."""
        self._succeeded += 1
        self._errors.pop(shard, None)

    def failed(self, shard: str, node: str, error: BaseException, nodes: int) -> None:
        """Record a failed attempt of a shard on a node; `nodes` is the number of nodes that the pass can use now.

        Unless all failures are on one of several nodes, raises the worker's error if nothing has succeeded yet,
        ShardsFailedError if too large a share of the attempts has failed.
        """
        self._errors[shard] = error
        self._attempts[shard] = self._attempts.get(shard, 0) + 1
        self._nodes.setdefault(shard, set()).add(node)
        self._failed += 1
        where = set().union(*self._nodes.values())
        if len(where) < min(2, nodes):
            return  # one bad node costs its shards, not the pass
        if not self._succeeded and self._failed >= min(_FEW, self._shards) and len(self._errors) > 1:
            raise error
        done = self._failed + self._succeeded
        if self._failed >= _SMALLEST_SAMPLE and self._failed > _MOST_FAILED * done:
            raise self._summary(f"{self._failed} of {done} attempts failed")

    def to_retry(self, nodes: set[str]) -> dict[str, int]:
        """Failed shards to try again, with the number of the next attempt. `nodes` are the ids of usable nodes.

        A user's mistake gives the same error again, so it is only tried on nodes that the shard has not failed on.
        """
        return {
            shard: self._attempts[shard] + 1
            for shard, error in self._errors.items()
            if self._attempts[shard] < self._max_attempts
            and (nodes - self._nodes[shard] or not isinstance(error, (UsageError, CheckFailed)))
        }

    def bad_nodes(self, nodes: set[str]) -> set[str]:
        """Nodes that retries must avoid: those where the shards failed, if other nodes are left."""
        bad = set().union(*(self._nodes[shard] for shard in self._errors)) if self._errors else set()
        return bad if nodes - bad else set()

    def raise_if_any(self) -> None:
        """Raise if failed shards are left: the worker's own error if nothing succeeded, else ShardsFailedError."""
        if not self._errors:
            return
        if not self._succeeded:
            raise next(iter(self._errors.values()))
        raise self._summary(f"{len(self._errors)} of {self._shards} shards failed on every attempt")

    def _summary(self, what: str) -> ShardsFailedError:
        shard, error = max(self._errors.items(), key=lambda entry: self._attempts[entry[0]])
        node = ", ".join(sorted(name[:12] for name in self._nodes[shard]))
        text = " ".join(str(error).split()) or type(error).__name__
        return ShardsFailedError(
            f"{self._stage}: {what}; shard {shard} after {self._attempts[shard]} on node {node}: {text}; "
            "committed shards stay"
        )


def nodes_by_id(nodes: list[Mapping[str, Any]], needed: Mapping[str, float]) -> set[str]:
    """Ids of the living nodes among ray.nodes() that have all of these resources, such as {"CPU": 1}."""
    return {
        str(node["NodeID"])
        for node in nodes
        if node["Alive"] and all(node["Resources"].get(name, 0.0) >= amount for name, amount in needed.items())
    }

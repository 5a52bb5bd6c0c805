"""Whether the cluster has a place for a run's workers. A run that lost a node waits for another; this says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_ROUNDING: Final = 1e-6  # of five workers at a fifth of a CPU
log = logging.getLogger(__name__)


class Room:
    """Looks at the cluster's nodes, and says when there is no room for the fewest workers and when there is again.

    Attributes:
        run: Name of the run.
        missing: Whether there was none at the last look.
    """

    def __init__(
        self,
        run: str,
        fewest: int,
        worker: Mapping[str, float],
        nodes: Callable[[], Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Of a run, the fewest workers it goes on with and what each of them takes.

        Args:
            run: Name of the run, for the messages.
            fewest: Workers without which it waits.
            worker: Resources of one worker by Ray's names; each has them on one node.
            nodes: The cluster's nodes as ray.nodes gives them, which it is by default.
        """
        self.run, self._fewest, self._worker, self._nodes = run, fewest, worker, nodes or _ray_nodes
        self.missing = False

    def look(self) -> None:
        """Ask for the nodes, and say what has changed."""
        room = sum(self._workers_on(node["Resources"]) for node in self._nodes() if node["Alive"])
        if (room < self._fewest) == self.missing:
            return
        self.missing = not self.missing
        if self.missing:
            takes = ", ".join(f"{amount:g} {name}" for name, amount in self._worker.items())
            log.warning(
                "training %s: the cluster has room for %d of %d workers (%s each): the run waits until it has more and "
                "goes on from its last checkpoint (Ctrl-C three times ends it)",
                self.run,
                room,
                self._fewest,
                takes,
            )
        else:
            log.info("training %s: the cluster has room for %d workers again", self.run, self._fewest)

    def _workers_on(self, resources: Mapping[str, float]) -> int:
        return int(min(resources.get(name, 0.0) / amount for name, amount in self._worker.items()) + _ROUNDING)


def _ray_nodes() -> Sequence[Mapping[str, Any]]:
    import ray

    nodes: Sequence[Mapping[str, Any]] = ray.nodes()
    return nodes

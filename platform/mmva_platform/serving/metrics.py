"""Numbers of the API beside Serve's own (requests, latency, queues, replicas), through Ray's exporter on each node.

Ray puts `ray_` before each name and adds deployment, replica and application as labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmva_platform.annotation.plan import ModelInfo


class Metrics:
    """Counters and gauges of one replica of the API.

    Attributes:
        items: Rows by modality and error, which is empty for a point.
        shed: Requests that were refused because there was too much to do.
        in_flight: Items.
    """

    def __init__(self, kinds: Any = None) -> None:
        """Make the metrics.

        Args:
            kinds: Has Counter and Gauge as ray.serve.metrics, which is the default.
        """
        if kinds is None:
            from ray.serve import metrics

            kinds = metrics
        self.items = kinds.Counter("mmva_items", "items by modality and error", ("modality", "error"))
        self.shed = kinds.Counter("mmva_shed", "refused with 429 or 503 at once", ("what",))
        self.in_flight = kinds.Gauge("mmva_items_in_flight", "items in flight", ())
        self._jobs = kinds.Gauge("mmva_jobs", "annotation jobs by state", ("state",))
        self._model = kinds.Gauge("mmva_model_info", "1 for the model that answers", ("model", "version", "digest"))
        self._shown: dict[str, str] | None = None

    def jobs(self, states: Mapping[str, int]) -> None:
        """Show how many jobs there are in each state."""
        for state, count in states.items():
            self._jobs.set(count, {"state": state})

    def model(self, model: ModelInfo) -> None:
        """Show which model answers."""
        tags = {"model": model.name, "version": model.version or "", "digest": model.digest}
        if self._shown is not None and self._shown != tags:
            self._model.set(0, self._shown)
        self._model.set(1, tags)
        self._shown = tags

"""What Prometheus reads at /metrics: of one front replica, which its label names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from mmva_platform.annotation.plan import ModelInfo

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_DIFFERENCES: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of a front replica, in a registry of its own."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self.registry = kept = CollectorRegistry()
        labels = ("route", "method", "status", "replica")
        self._requests = Counter("mmva_requests", "answers", labels, registry=kept)
        self._seconds = Histogram(
            "mmva_request_seconds", "time to the answer", ("route", "replica"), buckets=_SECONDS, registry=kept
        )
        self._items = Counter(
            "mmva_items", "items by modality and cause of error", ("modality", "error", "replica"), registry=kept
        )
        self._shed = Counter("mmva_shed", "answered 429 or 503 at once", ("what", "replica"), registry=kept)
        self._in_flight = Gauge("mmva_items_in_flight", "items in work", ("replica",), registry=kept)
        self._jobs = Gauge("mmva_jobs", "annotation jobs by state", ("state", "replica"), registry=kept)
        self._model = Gauge(
            "mmva_model_info",
            "which model answers",
            ("model", "version", "digest", "replica"),
            registry=kept,
        )
        self._lost = Counter(
            "mmva_replicas_lost", "model replicas that died with requests in work", ("replica",), registry=kept
        )
        self._shadowed = Counter(
            "mmva_shadowed_items",
            "items at the challenger, by result",
            ("result", "replica"),
            registry=kept,
        )
        self._difference = Histogram(
            "mmva_shadow_difference", "|challenger - champion| in a VA value", ("modality", "axis", "replica"),
            buckets=_DIFFERENCES, registry=kept,
        )  # fmt: skip

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, method, str(status), self._replica).inc()
        self._seconds.labels(route, self._replica).observe(seconds)

    def item(self, modality: str, error: str) -> None:
        """Count an item's row; `error` is empty for a point."""
        self._items.labels(modality, error, self._replica).inc()

    def shed(self, what: str) -> None:
        """Count what was turned away for being too much."""
        self._shed.labels(what, self._replica).inc()

    def in_flight(self, items: int) -> None:
        """Say how many items are in work."""
        self._in_flight.labels(self._replica).set(items)

    def jobs(self, states: Mapping[str, int]) -> None:
        """Say how many jobs there are in each state."""
        for state, count in states.items():
            self._jobs.labels(state, self._replica).set(count)

    def replica_lost(self) -> None:
        """Count a model replica that died with requests in work."""
        self._lost.labels(self._replica).inc()

    def model(self, model: ModelInfo) -> None:
        """Say which model answers."""
        self._model.clear()
        self._model.labels(model.name, model.version or "", model.digest, self._replica).set(1)

    def shadowed(self, result: str, items: int) -> None:
        """Count items that the challenger saw ("compared"), could not take ("failed"), or never got ("dropped")."""
        self._shadowed.labels(result, self._replica).inc(items)

    def difference(self, modality: str, axis: str, value: float) -> None:
        """Count a difference between the two models."""
        self._difference.labels(modality, axis, self._replica).observe(value)

    def expose(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

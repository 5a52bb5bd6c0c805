"""Metrics of annotation runs and of the API, exported by Ray on each node's `--metrics-export-port`.

The driver counts for a run, because it sees every commit record, with the worker's items, causes and seconds by stage.
So only work of lost workers is missing, and a run has one series per label, not one per worker. Ray adds the prefix
`ray_` to each name.
"""

import time
from collections.abc import Mapping
from typing import Any, Final

_COMMIT_S: Final = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]


class RunMetrics:
    """Counters of one run; needs a Ray session."""

    def __init__(self, run_id: str, model: Mapping[str, str], shards: int, done: int) -> None:
        """Show a run; `model` has name, version and digest; `done` of the `shards` are already committed."""
        from ray.util.metrics import Counter, Gauge, Histogram

        prefix, run = "mmva_annotate", ("run_id",)
        self._items = Counter(f"{prefix}_items", "items by result", ("run_id", "modality", "result"))
        self._quarantined = Counter(f"{prefix}_quarantined", "quarantined items by cause", ("run_id", "cause"))
        self._seconds = Counter(f"{prefix}_stage_seconds", "worker seconds by stage", ("run_id", "stage"))
        self._commit = Histogram(f"{prefix}_commit_seconds", "write and commit of a shard", _COMMIT_S, run)
        self._left = Gauge(f"{prefix}_shards_left", "planned shards without a commit", run)
        self._last = Gauge(f"{prefix}_last_commit_time_seconds", "Unix time of the newest commit", run)
        self._model = Gauge(f"{prefix}_model_info", "1 for a run's model", ("run_id", *model))
        self._run = {"run_id": run_id}
        self._model_tags = {**self._run, **model}
        self._shards_left = shards - done
        self._show()  # so that a run without a commit ages from its start

    def committed(self, record: Any) -> None:
        """Count a shard by its commit record."""
        for modality, count in record.by_modality.items():
            self._items.inc(count, {**self._run, "modality": modality, "result": "ok"})
        if record.quarantined:
            self._items.inc(record.quarantined, {**self._run, "modality": "any", "result": "quarantined"})
        for cause, count in record.causes.items():
            self._quarantined.inc(count, {**self._run, "cause": cause})
        for stage, value in record.seconds.items():
            if value > 0:
                self._seconds.inc(value, {**self._run, "stage": stage})
        self._commit.observe(record.seconds.get("write", 0.0), self._run)
        self._shards_left -= 1
        self._show()

    def _show(self) -> None:
        """Set all gauges again each time, because Ray loses values set before its exporter runs."""
        self._left.set(self._shards_left, self._run)
        self._last.set(time.time(), self._run)
        self._model.set(1, self._model_tags)


class ApiMetrics:
    """Counters and gauges of an API replica, in addition to Serve's own."""

    def __init__(self, kinds: Any = None) -> None:
        """Make the metrics; `kinds` has Counter and Gauge, by default ray.serve.metrics."""
        if kinds is None:
            from ray.serve import metrics

            kinds = metrics
        self.items = kinds.Counter("mmva_items", "items by modality and error", ("modality", "error"))
        self.shed = kinds.Counter("mmva_shed", "requests refused at once with 429 or 503", ("what",))
        self.in_flight = kinds.Gauge("mmva_items_in_flight", "items in flight", ())
        self._jobs = kinds.Gauge("mmva_jobs", "annotation jobs by state", ("state",))
        self._model = kinds.Gauge("mmva_model_info", "1 for the current model", ("model", "version", "digest"))
        self._shown: dict[str, str] | None = None

    def jobs(self, states: Mapping[str, int]) -> None:
        """Show the number of jobs in each state."""
        for state, count in states.items():
            self._jobs.set(count, {"state": state})

    def model(self, model: Mapping[str, str | None]) -> None:
        """Show the current model's name, version and digest."""
        tags = {"model": model["name"] or "", "version": model["version"] or "", "digest": model["digest"] or ""}
        if self._shown is not None and self._shown != tags:
            self._model.set(0, self._shown)
        self._model.set(1, tags)
        self._shown = tags

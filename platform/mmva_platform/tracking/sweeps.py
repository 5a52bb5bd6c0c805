"""A sweep in MLflow: one parent run, and a child run for each trial."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mmva_platform.settings import Settings
from mmva_platform.tracking.runs import flatten
from mmva_platform.tracking.store import experiment_id, open_client, quiet

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mmva_platform.training.sweep import SweepOptions, SweepResult

_BATCH: Final = 100
_PARENT: Final = "mlflow.parentRunId"


@dataclass(frozen=True)
class SweepLog:
    """The parent run of a sweep that is being searched."""

    client: MlflowClient
    experiment: str
    run_id: str

    @classmethod
    @contextmanager
    def open(cls, options: SweepOptions, settings: Settings) -> Iterator[SweepLog]:
        """Make the parent run; it ends as the block ends.

        Raises:
            UsageError: If MLflow cannot be opened.
        """
        client = open_client(settings)
        with quiet():
            experiment = experiment_id(client, settings)
            name = f"sweep-{options.name}" if options.name else "sweep"
            run_id = str(client.create_run(experiment, run_name=name, tags={"mmva.kind": "sweep"}).info.run_id)
            client.log_dict(run_id, options.model_dump(mode="json"), "sweep.json")
            try:
                yield cls(client, experiment, run_id)
            except BaseException:
                client.set_terminated(run_id, "FAILED")
                raise
            client.set_terminated(run_id, "FINISHED")

    def log_trial(self, trial: Mapping[str, Any]) -> None:
        """A trial as a child run: its recipe, its curves, how it ended."""
        from mlflow.entities import Metric, Param

        tags = {_PARENT: self.run_id, "mmva.ended_early": str(trial["ended_early"]).lower()}
        tags |= {"mmva.error": trial["error"]} if trial["error"] else {}
        name = ", ".join(f"{key}={value}" for key, value in trial["point"].items())
        run_id = str(self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id)
        now = int(time.time() * 1000)
        params = [Param(key, value) for key, value in flatten(trial["recipe"].model_dump(mode="json"))]
        metrics = [
            Metric(f"train/{key}", float(value), now, epoch)
            for epoch, row in enumerate(trial["history"])
            for key, value in row.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(params), _BATCH):
            self.client.log_batch(run_id, params=params[start : start + _BATCH])
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
        self.client.set_terminated(run_id, "FAILED" if trial["error"] else "FINISHED")

    def log_best(self, result: SweepResult) -> None:
        """The best trial's recipe, on the parent."""
        self.client.log_dict(self.run_id, result.best.model_dump(mode="json"), "best_recipe.json")
        values = [trial["value"] for trial in result.trials if trial["value"] is not None]
        self.client.log_metric(self.run_id, f"best/{result.metric}", min(values))

"""A sweep in MLflow: a parent run, and a child run for each trial from its first epoch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmva_platform.draining import Stopped, exit_on_sigterm
from mmva_platform.settings import Settings
from mmva_platform.tracking.store import TAG_CAUSE, connected, experiment_id, global_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from ray.tune import Callback

    from mmva_platform.training.sweep import SweepOptions, SweepResult


@dataclass(frozen=True)
class SweepLog:
    """The parent run of a sweep in progress."""

    client: MlflowClient
    run_id: str  # of the parent
    callback: Callback  # Ray's own; logs the trials

    @classmethod
    @contextmanager
    def open(cls, options: SweepOptions, settings: Settings) -> Iterator[SweepLog]:
        """Create the parent run. It ends with the block, and with it the unfinished runs of trials.

        Raises UsageError if MLflow cannot be opened, Stopped on SIGTERM.
        """
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        with connected(settings) as client, global_tracking_uri(settings.tracking_uri), exit_on_sigterm():
            experiment = experiment_id(client, settings)
            name = f"sweep-{options.name}" if options.name else "sweep"
            run_id = str(client.create_run(experiment, run_name=name, tags={"mmva.kind": "sweep"}).info.run_id)
            client.log_dict(run_id, options.model_dump(mode="json"), "sweep.json")
            callback = MLflowLoggerCallback(
                settings.tracking_uri,
                registry_uri=settings.tracking_uri,
                experiment_name=settings.tracking.experiment,
                tags={"mlflow.parentRunId": run_id},
            )
            try:
                yield cls(client, run_id, callback)
            except BaseException as error:
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                cause = "the sweep was stopped" if stopped else str(error)
                children = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
                ended = [run_id, *(run.info.run_id for run in client.search_runs([experiment], children))]
                for each in ended:
                    client.set_tag(each, TAG_CAUSE, cause[:500])
                    client.set_terminated(each, "KILLED" if stopped else "FAILED")
                if isinstance(error, SystemExit):
                    raise Stopped(cause) from error
                raise
            client.set_terminated(run_id, "FINISHED")

    def log_best(self, result: SweepResult) -> None:
        """Log the best trial's recipe and value in the parent run."""
        self.client.log_dict(self.run_id, result.best.model_dump(mode="json"), "best_recipe.json")
        values = [trial["value"] for trial in result.trials if trial["value"] is not None]
        self.client.log_metric(self.run_id, f"best/{result.metric}", min(values))

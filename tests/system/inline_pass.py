"""bulk.run_pass in this process, for tests of workers: the same contract without Ray and its seconds of start-up.

Workers, shards and results are pickled as on their way through a cluster. Shards run in reversed order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
from ray import cloudpickle

from mmva_platform import bulk
from mmva_platform.bulk.failures import Failures
from mmva_platform.cluster import ClusterInfo
from mmva_platform.datasets import checking
from mmva_platform.datasets.embedding import run as embedding
from mmva_platform.datasets.importing import run as importing
from mmva_platform.settings import Settings

_NODE = "this-process"


@dataclass
class InlineCluster:
    """Runs passes.

    Attributes:
        gpus: GPUs that the cluster is said to have.
        deaths: How often workers are said to have died at each shard.
        stages: Names of the passes so far.
        resources: What the actors of each pass asked for.
        before_shard: Called with the name of each shard before it runs.
    """

    gpus: float = 0.0
    deaths: int = 0
    stages: list[str] = field(default_factory=list)
    resources: list[bulk.Resources | None] = field(default_factory=list)
    before_shard: Callable[[str], None] = lambda _name: None

    def run_pass(
        self,
        shards: Sequence[Mapping[str, Any]],
        worker: Callable[..., bulk.ShardWorker],
        *,
        stage: str,
        settings: Settings,
        on_result: Callable[[Any], None],
        kwargs: Mapping[str, Any] | None = None,
        resources: bulk.Resources | None = None,
        before: bulk.Stage | None = None,
        step_limit_s: float | None = None,
        stopping: Callable[[], bool] = lambda: False,
        on_heartbeat: Callable[[Sequence[bulk.InFlight]], None] = lambda _in_flight: None,
    ) -> None:
        """See bulk.run_pass; failures are counted by its own rules. Nothing is decoded ahead, nothing drained."""
        assert before is None
        assert not stopping()
        on_heartbeat(())
        self.stages.append(stage)
        self.resources.append(resources)
        by_name = {shard["shard"]: shard for shard in reversed(shards)}
        assert len(by_name) == len(shards), "the names of shards must be unique"
        failures = Failures(stage, len(shards), settings.cluster.max_attempts)
        made = _pickled(worker)(**_pickled(dict(kwargs or {})))
        todo = dict.fromkeys(by_name, 1)
        while todo:
            for name, number in todo.items():
                self.before_shard(name)
                at_fault = number > 1 and failures.any_succeeded
                try:
                    with bulk.Attempt(
                        number, self.deaths, items_at_fault=at_fault, step_limit_s=step_limit_s or 300
                    ) as attempt:
                        result = made(_pickled(dict(by_name[name])), attempt)
                except Exception as error:  # noqa: BLE001 - counted, as in a pass
                    failures.failed(name, _NODE, _pickled(error), 1)
                else:
                    assert attempt.stage != "start", "a worker must report its steps"
                    failures.succeeded(name)
                    on_result(_pickled(result))
            todo = failures.to_retry({_NODE})
        failures.raise_if_any()

    def ray_session(self, _settings: object) -> AbstractContextManager[ClusterInfo]:
        """See cluster.ray_session."""
        return nullcontext(ClusterInfo("inline", nodes=1, cpus=2, gpus=self.gpus, started=False))


def install(patch: pytest.MonkeyPatch) -> InlineCluster:
    """Run import, embed and check of this process inline."""
    cluster = InlineCluster()
    patch.setattr(bulk, "run_pass", cluster.run_pass)
    for module in (checking, embedding, importing):
        patch.setattr(module, "ray_session", cluster.ray_session)
    return cluster


def install_annotation(patch: pytest.MonkeyPatch) -> InlineCluster:
    """Run annotate, update, retry, resume and verify of this process inline."""
    from mmva.engines.choice import calibrate_bundle  # with torch

    cluster = InlineCluster()
    patch.setattr("mmva_platform.annotation.run.runner.run_pass", cluster.run_pass)
    patch.setattr("mmva_platform.bulk.run_pass", cluster.run_pass)
    # `mmva_platform.annotation` also has a function `verify`, so the module is not found by a dotted name.
    verifying = import_module("mmva_platform.annotation.table.verify")
    patch.setattr(verifying, "ray_session", cluster.ray_session)
    patch.setattr("mmva_platform.annotation.run.runner.ray_session", cluster.ray_session)
    patch.setattr("mmva_platform.annotation.run.prepare.ray_session", cluster.ray_session)
    patch.setattr("mmva_platform.annotation.run.prepare.Workers.have_gpus", lambda _workers: False)
    patch.setattr("mmva_platform.annotation.run.prepare.Workers.calibrate", staticmethod(calibrate_bundle))
    return cluster


def _pickled(value: Any) -> Any:
    return cloudpickle.loads(cloudpickle.dumps(value))

"""The resources and the number of a pass's actors, and a check that at least one fits the cluster."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mmva.errors import UsageError
from mmva_platform.bulk.attempt import ShardWorker
from mmva_platform.settings import ClusterSettings

_ROUNDING: Final = 1e-6  # three workers at a third of a GPU must fit one GPU


@dataclass(frozen=True)
class Resources:
    """Resources of one actor, and the largest number of actors; None follows the size of the cluster."""

    cpus: float = 1.0
    gpus: float = 0.0
    max_workers: int | None = None


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: a worker's class, its constructor's arguments, and the resources of its actors."""

    worker: Callable[..., ShardWorker]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()


def actors_that_fit(resources: Resources, nodes: list[Mapping[str, float]]) -> int:
    """How many actors fit on these nodes, each given by its resources in Ray's names."""
    return sum(int(_fit(node, resources) + _ROUNDING) for node in nodes)


def most_actors(resources: Resources, settings: ClusterSettings) -> int | None:
    """The largest number of actors that the settings allow; None if they set no limit."""
    limits = [resources.max_workers]
    if settings.max_cpus is not None and resources.cpus:
        limits.append(int(settings.max_cpus / resources.cpus + _ROUNDING))
    if settings.max_gpus is not None and resources.gpus:
        limits.append(int(settings.max_gpus / resources.gpus + _ROUNDING))
    return min((limit for limit in limits if limit is not None), default=None)


def check_feasible(resources: Resources, settings: ClusterSettings, nodes: list[Mapping[str, float]]) -> None:
    """Raise UsageError if no actor fits and no setting lets the cluster grow: the pass would wait forever."""
    if actors_that_fit(resources, nodes):
        return
    if resources.gpus and not settings.max_gpus:
        there = sum(node.get("GPU", 0.0) for node in nodes)
        raise UsageError(
            f"a worker needs {resources.gpus:g} GPU and the cluster has {there:g}: choose an engine for CPUs, or set "
            "cluster.max_gpus if the cluster starts GPU nodes on demand"
        )
    if not resources.gpus and not settings.max_cpus:
        largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        raise UsageError(
            f"a worker needs {resources.cpus:g} CPU and the largest node has {largest:g}: set cluster.num_cpus for a "
            "local Ray, or cluster.max_cpus if the cluster starts nodes on demand"
        )


def _fit(node: Mapping[str, float], resources: Resources) -> float:
    shares = [node.get(name, 0.0) / need for name, need in (("CPU", resources.cpus), ("GPU", resources.gpus)) if need]
    return min(shares, default=0.0)

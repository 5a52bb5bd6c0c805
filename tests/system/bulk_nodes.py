"""Passes on several nodes of one machine; writes what happened to found.json. Run by test_bulk_nodes.py."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from mmva.errors import OperationFailed
from mmva_platform.bulk import Attempt, Resources, Stage, run_pass
from mmva_platform.settings import ClusterSettings, Settings

# A node is noticed dead after some 2 s instead of 15.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


class Worker:
    """Says where it ran; fails on one node, or waits until a file is there."""

    def __init__(self, bad_node: str = "", wait_for: str = "") -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._bad = self._node == bad_node
        self._wait_for = Path(wait_for) if wait_for else None

    def __call__(self, shard: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
        if self._bad:
            raise OperationFailed("no space left on device")
        if self._wait_for is not None:
            (self._wait_for / f"{shard['shard']}-{self._node}").touch()
            while not (self._wait_for / "go").exists():
                time.sleep(0.1)
        facts = {"number": attempt.number, "deaths": attempt.deaths, "before": shard.get("before")}
        return {"shard": shard["shard"], "node": self._node} | facts


class Before(Worker):
    """The stage before: adds its own facts to the shard."""

    def __call__(self, shard: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
        return shard | {"before": super().__call__(shard, attempt)}


def run(worker: Any, shards: int, cluster: dict[str, Any] | None = None, **options: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    run_pass(
        [{"shard": f"{n:03d}"} for n in range(shards)], worker, stage="nodes",
        settings=Settings(cluster=ClusterSettings(**(cluster or {}))), on_result=results.append, **options,
    )  # fmt: skip
    return results


def lost_node(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Both nodes hold shards when one of them goes; the other one finishes them all."""
    node = cluster.add_node(num_cpus=1)
    (folder / "lost").mkdir()

    def lose() -> None:
        while not list((folder / "lost").glob(f"*-{node.node_id}")):
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)
        while any(each["NodeID"] == node.node_id and each["Alive"] for each in ray.nodes()):
            time.sleep(0.2)
        (folder / "lost" / "go").touch()

    thread = threading.Thread(target=lose)
    thread.start()
    results = run(Worker, 4, kwargs={"wait_for": str(folder / "lost")})
    thread.join()
    held = sorted(path.name.partition("-")[0] for path in (folder / "lost").glob(f"*-{node.node_id}"))
    return {"results": results, "node": node.node_id, "held": held}


def gpu_node_later(cluster: Cluster) -> tuple[list[dict[str, Any]], str]:
    """A pass for a GPU begins while there is none. Ray starts nodes in the main thread only."""
    results: list[dict[str, Any]] = []
    gpu, cpu = Resources(cpus=0.0, gpus=1.0), Stage(Before, resources=Resources())
    thread = threading.Thread(target=lambda: results.extend(run(Worker, 4, {"max_gpus": 1}, resources=gpu, before=cpu)))
    thread.start()
    time.sleep(3)
    node = cluster.add_node(num_cpus=0, num_gpus=1)
    thread.join()
    return results, node.node_id


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.WARNING)
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    first = cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    try:
        bad = run(Worker, 6, kwargs={"bad_node": first.node_id})
        cluster.remove_node(second)
        lost = lost_node(cluster, folder)
        gpu, gpu_node = gpu_node_later(cluster)
        found = {"bad": bad, "first": first.node_id, "lost": lost, "gpu": gpu, "gpu_node": gpu_node}
        (folder / "found.json").write_text(json.dumps(found))  # Ray writes to stdout, too
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

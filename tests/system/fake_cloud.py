"""ray-cluster.yaml's layout on Ray's fake multi-node provider: its autoscaler starts raylets here instead of machines.

Ray has `cluster_utils.AutoscalingCluster` for this, but it begins with `ray stop --force`, which ends every Ray of the
machine, and reads a file that no wheel contains.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from ray_head import RayHead

_FILE = Path(__file__).resolve().parents[2] / "ray-cluster.yaml"
_HEAD = "ray.head.default"  # the provider knows its head by no other name
_IDLE_S = 5


class FakeCloud(RayHead):
    """A head without work and an autoscaler; `history` says what it has started and ended."""

    def __init__(self, environment: dict[str, str], cpus_per_worker: int = 1) -> None:
        super().__init__(environment | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}, cpus_per_worker)

    def history(self) -> list[dict[str, int]]:
        """Kind of node -> how many there were, the head left out, as the autoscaler has logged it every second."""
        log = self.folder / "session_latest" / "logs" / "monitor.log"
        statuses = log.read_text().split("Autoscaler status:")[1:] if log.exists() else []
        active = [
            status.partition("Active:")[2].partition("Pending:")[0] for status in statuses if "Pending:" in status
        ]
        found = [re.findall(r"^ (\d+) (\S+)$", text, re.MULTILINE) for text in active]
        return [{kind: int(count) for count, kind in nodes if kind != _HEAD} for nodes in found]

    def _further(self, cpus: int) -> list[str]:
        config = self.folder / "cluster.json"
        config.write_text(json.dumps(layout(self.address, cpus)))
        return ["--num-cpus=0", f"--autoscaling-config={config}"]


def layout(address: str, cpus: int) -> dict[str, Any]:
    """ray-cluster.yaml with its kinds of node and their numbers; small ones, which go after seconds without work."""
    config = yaml.safe_load(_FILE.read_text())
    kinds = config["available_node_types"]
    for kind in kinds.values():
        kind["node_config"] = {}
        kind.pop("docker", None)
        if kind["resources"]["CPU"]:
            kind["resources"] |= {"CPU": cpus, "object_store_memory": 80 * 2**20}
    kinds[_HEAD] = kinds.pop(config["head_node_type"]) | {"max_workers": 0}
    provider = {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True, "launch_multiple": True}
    provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
    kept = {name: config[name] for name in ("cluster_name", "max_workers", "upscaling_speed", "available_node_types")}
    # Ray does not read its defaults again for a cluster that is up.
    names = ["setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"]
    names += ["head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"]
    lists: dict[str, list[str]] = {name: [] for name in [*names, "rsync_exclude", "rsync_filter"]}
    rest = {"auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False}
    return kept | lists | rest | {
        "provider": provider, "head_node_type": _HEAD, "idle_timeout_minutes": _IDLE_S / 60,
    }  # fmt: skip

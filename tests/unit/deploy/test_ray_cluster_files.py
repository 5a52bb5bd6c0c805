"""ray-cluster.yaml and ray-cluster-onprem.yaml: Ray's own schema, and what we promise of them."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILES = ["ray-cluster.yaml", "ray-cluster-onprem.yaml"]


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(file: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / file).read_text()))


def commands(config: dict[str, Any]) -> list[str]:
    kinds = ("head_start_ray_commands", "worker_start_ray_commands")
    return [command for kind in kinds for command in config[kind] if "ray start" in command]


def test_rays_own_schema_takes_it(file: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load(file)))


def test_tokens_are_on_and_the_dashboard_is_not_for_the_network(file: str) -> None:
    config = load(file)
    head, worker = commands(config)
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_JOB_STOP_WAIT_TIME_S=900" in head
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_nothing_runs_on_the_head(file: str) -> None:
    config = load(file)
    assert "--num-cpus=0" in commands(config)[0]
    if "available_node_types" in config:
        assert config["available_node_types"][config["head_node_type"]]["resources"]["CPU"] == 0


def test_no_keys_and_no_secrets(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(r"AKIA|aws_secret|aws_access_key|RAY_AUTH_TOKEN=|password", text, re.IGNORECASE)


def test_ray_is_the_locked_one() -> None:
    text = (ROOT / "ray-cluster.yaml").read_text()
    versions = set(re.findall(r"ray(\d+\.\d+\.\d+)", text))
    locked = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    wanted = re.search(r'"ray\[.*\]>=(\d+\.\d+),<(\d+\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert locked
    assert wanted
    assert versions == {locked[1]} == {metadata.version("ray")}
    assert locked[1].startswith(f"{wanted[1]}.")
    assert "constraints.txt" in (ROOT / "ray-cluster-onprem.yaml").read_text()


def test_the_aws_layout() -> None:
    kinds = load("ray-cluster.yaml")["available_node_types"]
    spot = {name for name, kind in kinds.items() if kind["node_config"].get("InstanceMarketOptions")}
    assert spot == {"cpu-worker"}  # bulk work; never the head, which holds every job's driver
    assert kinds["gpu-worker"]["resources"]["GPU"] == 1
    assert kinds["gpu-worker"]["min_workers"] == 0
    assert "-gpu" in kinds["gpu-worker"]["docker"]["worker_image"]
    for name, kind in kinds.items():
        assert kind["node_config"]["IamInstanceProfile"], name
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required", name

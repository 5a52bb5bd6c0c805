"""A bad node, a lost node, and a node with a GPU that comes later: each costs the shards on it at most one more try."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("nodes")
    script = Path(__file__).with_name("bulk_nodes.py")
    here = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True, text=True, check=False, timeout=400, env=os.environ | {"PYTHONPATH": here},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return result


def test_a_bad_node_costs_a_second_try_elsewhere(found: dict[str, Any]) -> None:
    assert sorted(result["shard"] for result in found["bad"]) == [f"{n:03d}" for n in range(6)]
    assert found["first"] not in {result["node"] for result in found["bad"]}
    assert {result["number"] for result in found["bad"]} == {1, 2}  # the good node took most of them at once


def test_a_lost_node_does_not_count_against_its_shards(found: dict[str, Any]) -> None:
    lost = found["lost"]
    assert lost["held"]  # the node had begun some of them
    assert sorted(result["shard"] for result in lost["results"]) == [f"{n:03d}" for n in range(4)]
    assert {(result["number"], result["deaths"]) for result in lost["results"]} == {(1, 0)}
    assert lost["node"] not in {result["node"] for result in lost["results"]}


def test_gpu_nodes_may_start_from_zero_and_cpu_nodes_prepare_for_them(found: dict[str, Any]) -> None:
    assert {result["node"] for result in found["gpu"]} == {found["gpu_node"]}
    assert {result["before"]["node"] for result in found["gpu"]} - {found["gpu_node"]}
    assert [result["before"]["shard"] for result in found["gpu"]] == [result["shard"] for result in found["gpu"]]

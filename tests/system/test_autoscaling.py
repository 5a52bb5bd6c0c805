"""A run on a cluster that grows for it and shrinks after it: ray-cluster.yaml's kinds of node, Ray's own autoscaler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_cloud import FakeCloud
from PIL import Image
from world import MAIN, environment

from mmva_platform.annotation import open_annotation

pytestmark = [pytest.mark.system, pytest.mark.whole]

PICTURES, WORKERS = 24, 3
# A worker decodes nothing before all of them have come: the run waits for the node, however long it takes to start.
GATHERING = """
import os, time
from pathlib import Path
from PIL import ImageFile

original = ImageFile.ImageFile.load

def load(self):
    here = Path({folder!r})
    (here / str(os.getpid())).touch()
    while len(list(here.iterdir())) < {workers}:
        time.sleep(0.1)
    return original(self)

ImageFile.ImageFile.load = load
"""


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[FakeCloud]:
    (tmp_path / "code").mkdir()
    (tmp_path / "gathered").mkdir()
    text = GATHERING.format(folder=str(tmp_path / "gathered"), workers=WORKERS)
    (tmp_path / "code" / "sitecustomize.py").write_text(text)
    variables = environment()
    variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "code"), variables["PYTHONPATH"]])
    ray = FakeCloud(variables)
    yield ray
    ray.stop()


def test_nodes_come_for_a_run_and_go_after_it(cloud: FakeCloud, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "catalog").mkdir()
    for number in range(PICTURES):
        Image.new("RGB", (40, 32), (number, 120, 90)).save(tmp_path / "catalog" / f"{number:03d}.png")
    (tmp_path / "settings.yaml").write_text(
        json.dumps({
            "home": str(tmp_path / "home"),
            "cluster": {"address": cloud.address},  # no limit: the pool follows the cluster
            "annotation": {"item_timeout_s": 400},
        })
    )  # fmt: skip
    command = [sys.executable, "-c", MAIN, "--settings", tmp_path / "settings.yaml", "annotate", tmp_path / "catalog"]
    options = ["--model", tiny_bundle, "--out", tmp_path / "out", "--engine", "torch", "--shard-items", "2"]
    until(lambda: cloud.history()[-1:] == [{"cpu-worker": 1}])  # the one that stays
    run = subprocess.run(
        [*map(str, [*command, *options]), "--workers", str(WORKERS)],
        env=environment(), capture_output=True, text=True, check=False, timeout=480,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    made = open_annotation(str(tmp_path / "out"))
    assert (made.count("ok"), made.count("quarantined")) == (PICTURES, 0)
    # A worker has a CPU of its own, so a node came for each; no worker asked for a GPU.
    assert max(nodes.get("cpu-worker", 0) for nodes in cloud.history()) == WORKERS
    assert {kind for nodes in cloud.history() for kind in nodes} == {"cpu-worker"}
    records = [json.loads(file.read_text()) for file in (tmp_path / "out" / "_mmva" / "000000" / "commits").iterdir()]
    assert len({record["worker"] for record in records}) == WORKERS  # the nodes that came have worked
    assert [record["attempt"] for record in records] == [1] * (PICTURES // 2)  # and no shard was begun twice
    until(lambda: cloud.history()[-1] == {"cpu-worker": 1})


def until(what: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)  # until a deadline, not for a time

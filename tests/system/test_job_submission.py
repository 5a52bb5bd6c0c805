"""Jobs through Ray's own job server with token authentication: `mmva jobs ...`, and equally plain `ray job submit`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_server import JobServer
from PIL import Image

pytestmark = pytest.mark.system

MMVA = (sys.executable, "-m", "mmva_platform.cli")
PICTURES = 900
SECRET = "a-password-that-nobody-may-read"


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    head = JobServer({"CLUSTER_PASSWORD": SECRET})
    yield head
    head.stop()


def catalog(folder: Path, pictures: int) -> Path:
    folder.mkdir()
    for index in range(pictures):
        Image.new("RGB", (64, 64), (index % 250, index // 250, 90)).save(folder / f"{index:04d}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    return folder


def test_stop_drains_the_shards_under_way_and_the_same_job_goes_on(
    server: JobServer, repository: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    submit = (
        *MMVA, "--home", tmp_path / "home", "jobs", "submit", "--working-dir", repository, "--exclude", "tests/",
        "--secret", "MLFLOW_TRACKING_PASSWORD=CLUSTER_PASSWORD",
    )  # fmt: skip
    verb = (
        "annotate", catalog(tmp_path / "catalog", PICTURES), "--model", tiny_bundle, "--out", out, "--engine", "torch",
        "--shard-items", "4",
    )  # fmt: skip
    server.run(*submit, "--no-wait", "--name", "drained", *verb, "--workers", "1")  # the client ends, the job does not
    deadline = time.monotonic() + 120
    while not list(out.glob("commits/*.json")):
        assert time.monotonic() < deadline, server.run(*MMVA, "jobs", "logs", "drained")
        time.sleep(0.05)  # until a deadline, not for a time
    state = json.loads(server.run(*MMVA, "jobs", "stop", "drained", "--json"))
    logs = server.run(*MMVA, "jobs", "logs", "drained")
    assert state["status"] == "STOPPED"
    assert "stopped on request after" in logs
    committed, begun = len(list(out.glob("commits/*"))), len(list(out.glob("attempts/*")))
    assert 0 < committed == begun < PICTURES // 4  # nothing was cut short
    assert not (out / "MANIFEST.json").exists()

    said = server.run(*submit, *verb, "--workers", "2")
    assert f"{PICTURES} annotated" in said
    totals = json.loads((out / "MANIFEST.json").read_text())["totals"]
    assert (totals["ok"], totals["quarantined"]) == (PICTURES, 1)
    attempts = [file.parent.name for file in out.glob("attempts/*/*")]
    assert len(attempts) == len(set(attempts))  # no shard was begun twice
    jobs = json.loads(server.run(*MMVA, "jobs", "list", "--json"))
    assert {job["id"]: job["status"] for job in jobs}["drained"] == "STOPPED"
    assert "SUCCEEDED" in [job["status"] for job in jobs]
    written = "".join(file.read_text(errors="replace") for file in out.rglob("*.json"))
    assert SECRET not in logs + said + json.dumps(jobs) + written


def test_without_the_token_nothing_is_told(server: JobServer) -> None:
    environment = server.environment
    server.environment = environment | {"RAY_AUTH_TOKEN": "0" * 64}
    try:
        assert "does not accept this token" in server.run(*MMVA, "jobs", "list", code=2)
    finally:
        server.environment = environment


def test_the_plain_way_is_as_good(server: JobServer, tiny_bundle: Path, tmp_path: Path, repository: Path) -> None:
    ray, out = Path(sys.executable).with_name("ray"), tmp_path / "out"
    server.environment.pop("PYTHONPATH", None)
    server.run(
        *(ray, "job", "submit", "--address", server.address, "--"),
        *("env", f"PYTHONPATH={repository}{os.pathsep}{repository / 'platform'}"),
        *(sys.executable, repository / "jobs" / "annotate.py", "--home", tmp_path / "home"),
        *("--set", f"catalog={catalog(tmp_path / 'catalog', 3)}", "--set", f"model={tiny_bundle}"),
        *("--set", f"out={out}", "--set", "engine=torch"),
    )
    assert json.loads((out / "MANIFEST.json").read_text())["totals"]["ok"] == 3

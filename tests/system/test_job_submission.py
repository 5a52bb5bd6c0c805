"""A job script through Ray's own job server: `ray job submit -- python jobs/annotate.py ...`, as on a cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.system


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def job_server(tmp_path: Path) -> Iterator[str]:
    """A Ray head with a dashboard on loopback, in a process of ours; its address for `ray job submit`."""
    dashboard, gcs, agent = _free_port(), _free_port(), _free_port()
    ray = Path(sys.executable).with_name("ray")
    arguments = ["--num-cpus=4", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    arguments.append(f"--dashboard-agent-listen-port={agent}")  # its default is taken by any other Ray
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    with (tmp_path / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [ray, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_up(address, head, tmp_path / "head.log")
        yield address
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def _wait_until_up(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert head.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.25)
    raise AssertionError(log.read_text())


def _submit(address: str, *command: object) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, again while the server's agent is not up yet: it says so and asks for that."""
    ray = Path(sys.executable).with_name("ray")
    arguments = [str(part) for part in (ray, "job", "submit", "--address", address, "--", *command)]
    for _ in range(60):
        done = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        )
        if "try again later" not in done.stderr + done.stdout:
            break
        time.sleep(1)
    return done


def test_an_annotation_job_runs_on_a_submitted_cluster(
    job_server: str, tiny_bundle: Path, tmp_path: Path, repository: Path
) -> None:
    catalog, out = tmp_path / "catalog", tmp_path / "out"
    catalog.mkdir()
    for index in range(5):
        Image.new("RGB", (64, 64), (50 * index, 90, 200 - 40 * index)).save(catalog / f"{index}.png")
    (catalog / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    submitted = _submit(
        job_server,
        *(sys.executable, repository / "jobs" / "annotate.py", "--home", tmp_path / "home"),
        *("--set", f"catalog={catalog}", "--set", f"model={tiny_bundle}", "--set", f"out={out}"),
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    manifest = json.loads((out / "MANIFEST.json").read_text())["totals"]
    assert (manifest["ok"], manifest["quarantined"]) == (5, 1)

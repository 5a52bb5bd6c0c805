"""deploy/local.sh for a test: everything that one server runs, on loopback and free ports, in a folder of its own."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from seaweed import free_ports

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "local.sh"
PORTS = (
    "S3_PORT", "MASTER_PORT", "VOLUME_PORT", "FILER_PORT", "POSTGRES_PORT", "MLFLOW_PORT", "RAY_PORT",
    "DASHBOARD_PORT", "METRICS_PORT", "API_PORT", "PROMETHEUS_PORT", "RAY_CLIENT_PORT", "RAY_AGENT_PORT",
)  # fmt: skip
_WEED_STEP = 10_000  # SeaweedFS listens with gRPC at each of its ports plus this


class LocalStack:
    """Attributes: environment, of `source DIR/env`; ports, by their variable; said, by the script at its start."""

    def __init__(self, extra: dict[str, str]) -> None:
        # PostgreSQL's server is another user where the tests are root: every folder above must let it through.
        self.folder = Path(tempfile.mkdtemp(prefix="mmva-stack-", dir="/tmp"))
        self.folder.chmod(0o711)
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        for name in PORTS[:4]:
            while self.ports[name] > 65_535 - _WEED_STEP:
                [self.ports[name]] = free_ports(1)
        # Ray shows a gauge for two report intervals, and sets those of its nodes every 5 s: with shorter ones a scrape
        # may never see them.
        self._ours = os.environ | {name: str(port) for name, port in self.ports.items()} | extra | {
            "MMVA_BIN": str(Path(sys.executable).parent), "RAY_FOLDER": str(self.folder / "ray"), "CPUS": "4",
            "OBJECT_STORE_BYTES": str(128 * 2**20), "OMP_NUM_THREADS": "1", "RAY_metrics_report_interval_ms": "3000",
            "REPORTER_UPDATE_INTERVAL_MS": "5000",
        }  # fmt: skip
        self.environment = self._ours

    def start(self) -> None:
        """Start all, or what does not run; an AssertionError with the logs' ends otherwise."""
        self._script("start")
        dump = f"source '{self.folder / 'env'}' && env -0"
        read = subprocess.run(["bash", "-c", dump], capture_output=True, text=True, check=True, env=self._ours)
        self.environment = dict(entry.split("=", 1) for entry in read.stdout.split("\0") if entry)

    def stop(self) -> None:
        """Stop all, and forget the data."""
        self._script("stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def status(self) -> dict[str, str]:
        """Part -> up or down."""
        done = self._run(str(SCRIPT), "status", str(self.folder))
        return dict(line.split() for line in done.stdout.splitlines())

    def pid(self, part: str) -> int:
        """Of a part's process."""
        return int((self.folder / "pids" / part).read_text().split()[0])

    def run(self, *command: object, code: int = 0) -> str:
        """Output of a person's command; standard error of one that fails as it should."""
        done = self._run(*(str(word) for word in command))
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def mmva(self, *arguments: object, code: int = 0) -> str:
        """`mmva` with these arguments."""
        return self.run(sys.executable, "-m", "mmva_platform.cli", *arguments, code=code)

    def read(self, port: str, path: str) -> str:
        """What one of the servers answers over HTTP."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def ask(self, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, Any]:
        """Status and JSON of the API's answer to a GET, or to a POST of JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["API_PORT"], timeout=60)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        try:
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def _script(self, verb: str) -> None:
        done = subprocess.run(
            [SCRIPT, verb, self.folder], env=self._ours, capture_output=True, text=True, check=False, timeout=240
        )
        logs = [f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in self.folder.glob("logs/*")]
        assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=self.environment)

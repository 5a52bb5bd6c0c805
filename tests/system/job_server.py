"""A Ray head with its job server on loopback, with token authentication, in a process of ours."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from seaweed import free_ports

_START_S, _STOP_S = 90.0, 60.0


class JobServer:
    """Attributes: address, for job clients; environment, of the head and of every client that it accepts."""

    def __init__(self, extra: dict[str, str], cpus: int = 4) -> None:
        dashboard, gcs, client, agent, agent_grpc, runtime_env, metrics = free_ports(7)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.folder = Path(tempfile.mkdtemp(prefix="mmva-job-"))  # its sockets' names are limited to 107 characters
        self.token = secrets.token_hex(32)
        binaries = Path(sys.executable).parent
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_API_SERVER_ADDRESS": self.address,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **extra,
        }  # fmt: skip
        arguments = [
            "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--runtime-env-agent-port={runtime_env}", f"--metrics-export-port={metrics}", "--min-worker-port=0",
            "--max-worker-port=0", f"--num-cpus={cpus}", f"--object-store-memory={128 * 2**20}",
            f"--temp-dir={self.folder}", "--include-dashboard=true", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", "--disable-usage-stats",
        ]  # fmt: skip
        self.metrics_url = f"http://127.0.0.1:{metrics}/metrics"
        with (self.folder / "head.log").open("wb") as log:
            self.process = subprocess.Popen(
                [binaries / "ray", "start", "--head", "--block", *arguments],
                stdout=log, stderr=log, env=self.environment, start_new_session=True,
            )  # fmt: skip
        self._wait_until_up()

    def run(self, *command: object, code: int = 0) -> str:
        """Output of a command of a client of this server."""
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True, text=True, check=False, timeout=240, env=self.environment,
        )  # fmt: skip
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def stop(self) -> None:
        """End the head, then what is left of its processes."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        os.kill(self.process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs([psutil.Process(self.process.pid), *processes], timeout=_STOP_S)
        for process in alive:
            process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + _START_S
        request = urllib.request.Request(f"{self.address}/api/version")
        request.add_header("Authorization", f"Bearer {self.token}")
        while True:
            said = (self.folder / "head.log").read_text()
            assert self.process.poll() is None, said
            assert time.monotonic() < deadline, said
            try:
                with urllib.request.urlopen(request, timeout=2):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.25)  # until a deadline, not for a time

"""A Ray head on loopback that outlives the drivers which the tests kill: `ray start --block` in a process of ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from seaweed import free_ports

_START_S = 90.0
_STOP_S = 30.0
_END_S = 5.0  # some of Ray's processes outlive the head until they are killed
_ACTOR = "ray::MapWorker(MapBatches(ShardActor))"  # a pass's actors, as Ray Data names their processes


class RayHead:
    """One head with a folder of its own; `address` is what goes into the settings."""

    def __init__(self, environment: dict[str, str], cpus: int = 6) -> None:
        for last in (False, False, True):  # a busy machine misses the limits that are built into Ray
            self._start(environment, cpus)
            if self._is_up():
                return
            self.process.wait(timeout=_STOP_S)
            assert not last, (self.folder / "head.log").read_text()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, environment: dict[str, str], cpus: int) -> None:
        port, client, agent, agent_grpc, runtime_env, metrics = free_ports(6)
        self.address = f"127.0.0.1:{port}"
        self.folder = Path(tempfile.mkdtemp(prefix="mmva-ray-"))  # its sockets' names are limited to 107 characters
        arguments = [
            "--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--runtime-env-agent-port={runtime_env}", f"--metrics-export-port={metrics}", "--min-worker-port=0",
            "--max-worker-port=0", f"--object-store-memory={128 * 2**20}",
            f"--temp-dir={self.folder}", "--include-dashboard=false", "--include-log-monitor=false",
            "--disable-usage-stats", *self._further(cpus),
        ]  # fmt: skip
        ray = Path(sys.executable).with_name("ray")
        with (self.folder / "head.log").open("wb") as log:
            self.process = subprocess.Popen(
                [ray, "start", "--head", "--block", *arguments],
                stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    def _further(self, cpus: int) -> list[str]:
        """Arguments that a kind of head has besides; its folder and address are known by then."""
        return [f"--num-cpus={cpus}"]

    def workers(self) -> list[psutil.Process]:
        """Processes that run a pool's actor now."""
        return [process for process in self._processes() if _title(process).startswith(_ACTOR)]

    def stop(self) -> None:
        """End the head, then what is left of its processes."""
        processes = self._processes()
        os.kill(self.process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs([psutil.Process(self.process.pid), *processes], timeout=_END_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
                process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def _is_up(self) -> bool:
        """Wait until it runs, or has ended."""
        host, _, port = self.address.partition(":")
        deadline = time.monotonic() + _START_S
        said = self.folder / "head.log"
        while b"Ray runtime started" not in said.read_bytes():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)  # until a deadline, not for a time
        socket.create_connection((host, int(port)), timeout=5).close()
        return True


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""

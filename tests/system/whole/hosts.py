"""Processes that stand for hosts: each has a network, processes, shared memory and a name of its own, and dies whole.

They hang on a bridge in a network of the test's own. All of it is namespaces of the kernel, which needs root; nothing
of it is left behind, however the test ends: a namespace ends with its first process, and that with the test's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

SUBNET: Final = "10.77.0"
_CLONE_NEWNET: Final = 0x40000000
_BRIDGE: Final = "mmva0"
# Ray's folder is the same path on all nodes, and each has its own.
_FIRST_PROCESS: Final = """
set -e
hostname "$1"
ip link set lo up
mount -t tmpfs -o size=512m shared /dev/shm
mount --bind "$2" "$3"
echo ready
sleep infinity & wait
"""


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network with nothing but a bridge, on which it is host 1."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as before:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "a network namespace needs root")
        try:
            _ip("link", "set", "lo", "up")
            _ip("link", "add", _BRIDGE, "type", "bridge")
            _ip("address", "add", f"{SUBNET}.1/24", "dev", _BRIDGE)
            _ip("link", "set", _BRIDGE, "up")
            yield
        finally:
            libc.setns(before.fileno(), _CLONE_NEWNET)


class Host:
    """One machine, to be booted, cut off and killed.

    Attributes:
        name: Its host name.
        address: Its IP address.
        folder: Its disk, which outlives it; logs stand in it.
    """

    def __init__(self, name: str, number: int, root: Path) -> None:
        self.name, self.address = name, f"{SUBNET}.{number}"
        self.folder = root / name
        self.folder.mkdir()
        self.folder.chmod(0o711)  # PostgreSQL's user has to come through
        self.ray_folder = root / "ray"
        self._services: list[subprocess.Popen[bytes]] = []
        self._holder: subprocess.Popen[str] | None = None
        self._first = 0

    def boot(self) -> None:
        """An empty machine with a network."""
        own = self.folder / "ray"
        for folder in (own, self.ray_folder):
            folder.mkdir(exist_ok=True)
        holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
             "--ipc", "--uts", "bash", "-c", _FIRST_PROCESS, "bash", self.name, str(own), str(self.ray_folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            raise AssertionError(f"{self.name} does not boot: {holder.communicate()[1]}")
        (first,) = psutil.Process(holder.pid).children()
        self._holder, self._first = holder, first.pid
        _ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(self._first))
        _ip("link", "set", self.name, "master", _BRIDGE, "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def run(self, *command: object, environment: dict[str, str] | None = None) -> str:
        """Output of a command on it."""
        done = subprocess.run(
            self._inside(command), capture_output=True, text=True, check=False, timeout=120, env=environment
        )
        assert done.returncode == 0, f"{self.name}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, service: str, *command: object, environment: dict[str, str] | None = None) -> None:
        """Start a service, which logs into a file of its name."""
        with self.log(service).open("ab") as log:
            self._services.append(
                subprocess.Popen(
                    self._inside(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                )
            )

    def log(self, service: str) -> Path:
        """Where a service logs."""
        return self.folder / f"{service}.log"

    def processes(self, title: str) -> list[psutil.Process]:
        """Its processes whose command line begins so."""
        own = _space(self._first)
        return [process for process in psutil.process_iter() if _begins(process, title) and _space(process.pid) == own]

    def kill(self) -> None:
        """SIGKILL all of it at once, as a machine that loses its power."""
        if self._holder is not None:
            os.kill(self._first, signal.SIGKILL)
            self._holder.communicate()
            self._holder = None
            while self._services:
                self._services.pop().wait(timeout=30)
            subprocess.run(["ip", "link", "delete", self.name], check=False, capture_output=True)  # or soon by itself

    def cut(self) -> None:
        """Pull its network cable."""
        _ip("link", "set", self.name, "down")

    def mend(self) -> None:
        """Put it in again."""
        _ip("link", "set", self.name, "up")

    def _inside(self, command: tuple[object, ...]) -> list[str]:
        enter = ["nsenter", f"--target={self._first}", "--net", "--pid", "--mount", "--ipc", "--uts"]
        return [*enter, f"--wdns={self.folder}", *(str(word) for word in command)]


def until(condition: object, what: str, seconds: float = 90.0) -> None:
    """Wait until condition() is true; AssertionError with what() was waited for after so many seconds."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.2)  # until a deadline, not for a time


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def _begins(process: psutil.Process, title: str) -> bool:
    try:
        return " ".join(process.cmdline()).startswith(title)
    except psutil.Error:  # it has just ended
        return False


def _space(pid: int) -> str:
    """Which processes it sees: the host's, if they are those that the host's first one sees."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""

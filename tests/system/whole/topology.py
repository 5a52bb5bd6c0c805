"""The whole system on nine hosts: object storage in four parts, PostgreSQL, MLflow, a Ray head and two workers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hosts import Host, until
from services import (
    DASHBOARD,
    MLFLOW,
    S3,
    ask,
    environment,
    s3_client,
    start_head,
    start_mlflow,
    start_postgres,
    start_storage,
    start_volume,
    start_worker,
    stores,
    token,
)

REPOSITORY = Path(__file__).resolve().parents[3]


class Topology:
    """All hosts, and a person on another one who types `mmva`.

    Attributes:
        root: What all hosts share, as a network file system would: home and media.
        hosts: By name.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="mmva-whole-", dir="/tmp"))
        self.root.chmod(0o711)
        names = ("storage", "volume1", "volume2", "volume3", "postgres", "mlflow", "head", "worker1", "worker2")
        self.hosts = {name: Host(name, number, self.root) for number, name in enumerate(names, 10)}
        self.workers = [self.hosts["worker1"], self.hosts["worker2"]]
        self.volumes = [self.hosts[name] for name in names if name.startswith("volume")]
        self.head = self.hosts["head"]
        self.settings = self.root / "settings.yaml"
        self.settings.write_text(json.dumps(self._settings()))

    def _settings(self) -> dict[str, Any]:
        return {
            "home": str(self.root / "home"),
            "storage": {"s3_endpoint": f"http://{self.hosts['storage'].address}:{S3}"},
            "tracking": {"uri": f"http://{self.hosts['mlflow'].address}:{MLFLOW}"},
        }

    def start(self) -> None:
        """Boot all, and wait until all of it answers."""
        for name in self.hosts:
            self.boot(name)
        until(lambda: stores(self.hosts["storage"]), "object storage")
        until(lambda: ask(self.hosts["mlflow"], MLFLOW, "/health"), "MLflow")
        self.await_nodes(3)

    def boot(self, name: str) -> None:
        """Boot a host and start what runs on it."""
        host, storage = self.hosts[name], self.hosts["storage"]
        host.boot()
        if name == "storage":
            start_storage(host)
        elif name.startswith("volume"):
            start_volume(host, storage)
        elif name == "postgres":
            start_postgres(host)
        elif name == "mlflow":
            start_mlflow(host, self.hosts["postgres"], storage)
        elif name == "head":
            start_head(host, self.root)
        else:
            start_worker(host, self.head, self.root)

    def nodes(self) -> list[dict[str, Any]]:
        """Ray's nodes as the head knows them; none while it does not answer."""
        said = ask(self.head, DASHBOARD, "/api/v0/nodes?limit=100", self.root / "ray-token")
        return [] if said is None else json.loads(said)["data"]["result"]["result"]

    def await_nodes(self, count: int) -> None:
        """Wait until so many nodes are alive."""

        def there() -> bool:
            return sum(node["state"] == "ALIVE" for node in self.nodes()) == count

        until(there, f"{count} Ray nodes", 120.0)

    def person(self, *command: object, code: int = 0) -> str:
        """Output of a command on the person's machine; standard error too of one that fails as it should."""
        return ended(self.begin(*command), code)

    def begin(self, *command: object) -> subprocess.Popen[str]:
        """Begin a command on the person's machine."""
        words = [str(word) for word in command]
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.root,
            env=environment() | token(self.root) | {
                "MMVA_SETTINGS": str(self.settings),
                "RAY_API_SERVER_ADDRESS": f"http://{self.head.address}:{DASHBOARD}",
            },
        )  # fmt: skip

    def mmva(self, *arguments: object, code: int = 0) -> str:
        """Output of `mmva` on the person's machine."""
        return self.person(sys.executable, "-m", "mmva_platform.cli", *arguments, code=code)

    def submit(self, *verb: object) -> subprocess.Popen[str]:
        """Begin `mmva jobs submit`, which streams the job's output until it ends; its options may stand first."""
        sent = ("--working-dir", REPOSITORY, "--exclude", "tests/", "--exclude", "docs/", "--exclude", "benchmarks/")
        return self.begin(sys.executable, "-m", "mmva_platform.cli", "jobs", "submit", *sent, *verb)

    def job(self, *verb: object, code: int = 0) -> str:
        """What a submitted job says until it has ended with this code."""
        return ended(self.submit(*verb), code)

    def status(self, job: str) -> str:
        """Where a named job stands; UNKNOWN while the head does not answer."""
        said = ask(self.head, DASHBOARD, f"/api/jobs/{job}", self.root / "ray-token")
        return "UNKNOWN" if said is None else str(json.loads(said)["status"])

    def s3(self) -> Any:
        """A client of object storage."""
        return s3_client(self.hosts["storage"])

    def logs(self) -> str:
        """The ends of all services' logs."""
        files = sorted(self.root.glob("*/*.log"))
        return "\n".join(f"{file.relative_to(self.root)}: {file.read_text(errors='replace')[-800:]}" for file in files)

    def stop(self) -> None:
        """Kill all hosts and forget their disks."""
        for host in self.hosts.values():
            host.kill()
        shutil.rmtree(self.root, ignore_errors=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """Output of a command that ends with this code."""
    said, _ = process.communicate(timeout=400)
    assert process.returncode == code, f"exit {process.returncode}\n{said}"
    return said

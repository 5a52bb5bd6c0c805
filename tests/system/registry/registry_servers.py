"""MLflow as a deployment runs it: PostgreSQL 15, basic auth, artifacts on S3 without the tracking server in between.

Everything listens on loopback and belongs to the test that starts it. PostgreSQL and SeaweedFS are real servers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from seaweed import ACCESS, SECRET, Seaweed, free_ports

ADMIN, PASSWORD = "admin", "loopback-password-of-a-test"
BUCKET = "registry"
ANYTHING = "2.0/mlflow/experiments/get?experiment_id=0"
_START_S = 120.0


class Postgres:
    """One cluster in a folder of its own, run by a user other than root, who may not start it."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        on_path = shutil.which("initdb")
        if not found and on_path is None:
            pytest.fail("PostgreSQL's server binaries are missing: apt-get install postgresql")
        self.binaries = found[-1].parent if found else Path(str(on_path)).parent
        self.user = "postgres" if os.geteuid() == 0 else None
        # Not below pytest's own folder, which only its owner may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="mmva-postgres-"))
        if self.user:
            shutil.chown(self.folder, self.user)
        (self.port,) = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """SQLAlchemy's address of the database that MLflow uses."""
        return f"postgresql+pg8000://mlflow@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Make the cluster, and start it."""
        data = self.folder / "data"
        self._run("initdb", "-D", str(data), "-U", "mlflow", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(data), "-p", str(self.port), "-c", "fsync=off",
                 "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="],
                stdout=log, stderr=log, user=self.user, cwd=self.folder,
            )  # fmt: skip
        wait_until(self._answers, self.process, self.folder / "log")

    def stop(self) -> None:
        """Stop it and remove its folder."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        shutil.rmtree(self.folder)

    def version(self) -> str:
        """Such as "15.18"."""
        done = self._run("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "mlflow", "-d", "postgres", "-Atc",
                         "show server_version")  # fmt: skip
        return done.stdout.decode().split()[0]

    def _answers(self) -> bool:
        command = [str(self.binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(self.binaries / name), *arguments], check=True, capture_output=True, user=self.user, cwd=self.folder
        )


class MlflowServer:
    """`mlflow server` on loopback with basic auth; artifacts go from the client straight to S3."""

    def __init__(self, folder: Path, postgres: Postgres, seaweed: Seaweed) -> None:
        self.folder, self.postgres, self.seaweed = folder, postgres, seaweed
        (self.port,) = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def artifacts(self) -> str:
        """Root of its artifacts."""
        return f"s3://{BUCKET}/mlflow"

    def start(self) -> None:
        """Start it, and wait until it answers its administrator."""
        self.folder.mkdir(parents=True)
        auth = self.folder / "auth.ini"
        auth.write_text(
            "[mlflow]\ndefault_permission = READ\n"
            f"database_uri = sqlite:///{self.folder / 'auth.db'}\n"
            f"admin_username = {ADMIN}\nadmin_password = {PASSWORD}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        environment = {
            **os.environ,
            "MLFLOW_AUTH_CONFIG_PATH": str(auth),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-a-test",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        for name in ("MLFLOW_TRACKING_URI", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.pop(name, None)  # the server needs no key of the store: it never touches an artifact
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                 "--workers", "1", "--app-name", "basic-auth", "--backend-store-uri", self.postgres.uri,
                 "--no-serve-artifacts", "--default-artifact-root", self.artifacts],
                env=environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        wait_until(lambda: self.status(ANYTHING) == 200, self.process, self.folder / "log")
        self._hash_less()

    def _hash_less(self) -> None:
        """The administrator's password under a cheap hash: MLflow checks it up to six times a call, .1 s each."""
        from werkzeug.security import generate_password_hash

        with contextlib.closing(sqlite3.connect(self.folder / "auth.db")) as users, users:
            users.execute("UPDATE users SET password_hash = ?", [generate_password_hash(PASSWORD, "pbkdf2:sha256:1")])

    def status(self, path: str, body: dict[str, str] | None = None) -> int:
        """HTTP status of the administrator's GET, or POST of a body; 0 while nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.uri}/api/{path}", data, {"Content-Type": "application/json"})
        request.add_header("Authorization", "Basic " + b64encode(f"{ADMIN}:{PASSWORD}".encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """End it and the workers that it started: a process group of their own."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, 15)
            self.process.wait()


def started_seaweed(folder: Path) -> Seaweed:
    """SeaweedFS, on other ports where somebody takes one of its nine between choosing and binding it."""
    for attempt in ("weed", "weed-again"):
        seaweed = Seaweed(folder / attempt)
        try:
            seaweed.start()
        except (BotoCoreError, ClientError):
            seaweed.stop()
        else:
            return seaweed
    pytest.fail(f"SeaweedFS did not start:\n{(seaweed.folder / 'weed.log').read_text(errors='replace')[-3000:]}")


def client_environment(server: MlflowServer) -> dict[str, str]:
    """What a client needs: credentials for both servers, from nowhere but the environment."""
    return {
        "MLFLOW_TRACKING_USERNAME": ADMIN,
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def wait_until(ready: object, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until ready() is true; fails with the log's end when the process ends first or a deadline passes."""
    assert callable(ready)
    deadline = time.monotonic() + _START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)  # until a deadline, not for a time

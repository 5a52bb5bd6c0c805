"""`mmva doctor` finds what was planted, says what to do about it, and finds nothing where nothing is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mmva_platform.cli.main import run
from mmva_platform.doctor import Finding, machine, services
from mmva_platform.settings import Settings, StorageSettings, TrackingSettings
from mmva_platform.storage import open_storage
from mmva_platform.storage.local import LocalStorage

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server of one answer and gives its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int = 200, body: Any = None, date: float | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response_only(status)
                self.send_header("Date", formatdate(date, usegmt=True))
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("RAY_AUTH", "RAY_API", "MLFLOW_TRACKING")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))


def planted(found: Finding, says: str, verdict: str = "broken") -> None:
    assert found.verdict == verdict, found
    assert says in found.says
    assert found.todo


class TestMachine:
    def test_another_version_than_asked_for_and_one_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert machine.packages().verdict == "ok"
        true = metadata.version

        def version(name: str) -> str:
            if name == "boto3":
                raise metadata.PackageNotFoundError(name)
            return "2.40.0" if name == "ray" else true(name)

        monkeypatch.setattr("mmva_platform.doctor.machine.metadata.version", version)
        found = machine.packages()
        planted(found, "ray 2.40.0 is not")
        assert "boto3 is missing" in found.says

    def test_platform_made_a_package(self, tmp_path: Path) -> None:
        assert machine.standard_library().verdict == "ok"
        (tmp_path / "platform").mkdir()
        (tmp_path / "platform" / "__init__.py").touch()
        code = "from mmva_platform.doctor import machine; f = machine.standard_library(); print(f.verdict, f.says)"
        setup = (
            f"import importlib.util, sys; import mmva_platform.doctor.machine; sys.path.insert(0, {str(tmp_path)!r}); "
        )
        drop = "sys.modules.pop('platform', None); "
        done = subprocess.run([sys.executable, "-c", setup + drop + code], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("broken")
        assert str(tmp_path) in done.stdout

    def test_a_library_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "_NATIVE", ("json", "no_such_library.core"))
        planted(machine.native_libraries(), "no_such_library.core does not load (ModuleNotFoundError")
        monkeypatch.setattr(machine, "_NATIVE", ("json",))
        assert machine.native_libraries().verdict == "ok"

    def test_few_open_files(self) -> None:
        code = (
            "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
            "from mmva_platform.doctor import machine; f = machine.open_files(); print(f.verdict, f.says, f.todo)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("broken at most 256")

    def test_a_home_that_cannot_be_written(self, tmp_path: Path) -> None:
        assert machine.home(tmp_path / "new" / "home").verdict == "ok"
        planted(machine.home(Path("/proc/nothing/home")), "cannot be written")

    def test_a_proxy_before_loopback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert machine.proxies().verdict == "ok"
        monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
        planted(machine.proxies(), "127.0.0.1 is not exempt")
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        assert machine.proxies().verdict == "ok"

    def test_tokens(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "auth_token"
        planted(machine.token(), "without authentication", "warning")
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        planted(machine.token(), "no token in")
        file.write_text("0" * 64)
        file.chmod(0o644)
        planted(machine.token(), "may be read by others")
        file.chmod(0o600)
        assert machine.token().verdict == "ok"
        file.write_text("")
        planted(machine.token(), "holds no token")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        planted(machine.token(), "runs code", "warning")


class TestServices:
    def test_storage_that_lets_every_writer_win(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert services.storage(str(tmp_path / "out"), StorageSettings()).verdict == "ok"
        assert [entry.path for entry in open_storage(str(tmp_path / "out")).list()] == []

        def put(self: LocalStorage, path: str, data: bytes) -> bool:
            self.write(path, data)
            return True

        monkeypatch.setattr(LocalStorage, "put_if_absent", put)
        planted(services.storage(str(tmp_path / "out"), StorageSettings()), "ignores If-None-Match")

    def test_storage_without_credentials(self, monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
        found = services.storage("s3://bucket/x", StorageSettings(s3_endpoint=serve()))
        planted(found, "no S3 credentials found")

    def test_storage_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        planted(services.storage("s3://bucket/x", StorageSettings(s3_endpoint="http://127.0.0.1:9")), "s3://bucket/x")

    def test_a_clock_that_is_wrong(self, serve: Serve) -> None:
        assert services.clock(serve(403)).verdict == "ok"
        planted(services.clock(serve(403, date=1_000_000_000)), "s against")

    def test_mlflow_that_does_not_answer_or_is_refused(self) -> None:
        away = Settings(tracking=TrackingSettings(uri="http://user:hunter2@127.0.0.1:9"))
        found = services.tracking(away)
        planted(found, "no server answers")
        assert "hunter2" not in found.says
        planted(services.tracking(Settings(tracking=TrackingSettings(uri="file:/tmp/mlruns"))), "MLflow 3 needs")

    def test_a_registry_without_a_champion(self, tmp_path: Path) -> None:
        planted(services.tracking(Settings(home=tmp_path)), "0 versions, no champion", "warning")

    def test_a_cluster_of_another_ray_an_open_one_and_none(self, serve: Serve) -> None:
        planted(services.cluster(serve(body={"ray_version": "2.40.0"})), "runs Ray 2.40.0")
        ours = {"ray_version": metadata.version("ray")}
        planted(services.cluster(serve(body=ours)), "takes jobs from anybody", "warning")
        planted(services.cluster("http://127.0.0.1:9"), "does not answer")
        planted(services.cluster(serve(401)), "refuses this token")
        planted(services.cluster(serve(404)), "answers 404")


def test_the_command_says_all_and_fails_if_something_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_NATIVE", ("json",))
    arguments = ["--home", str(tmp_path / "home"), "doctor", "--storage", str(tmp_path / "out")]
    assert run(arguments) == 0
    said = capsys.readouterr().out
    assert "ok       storage" in said
    assert run([*arguments, "--address", "http://127.0.0.1:9", "--json"]) == 3
    captured = capsys.readouterr()
    assert [found["check"] for found in json.loads(captured.out) if found["verdict"] == "broken"] == ["cluster"]
    assert "cluster will not work" in captured.err

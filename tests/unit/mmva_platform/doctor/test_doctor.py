"""`mmva doctor` finds what was planted, says what to do about it, and finds nothing where nothing is wrong."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mmva_platform import cluster
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
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
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


@dataclass
class Machine:
    """What a plant may change; everything is in order before it does."""

    folder: Path
    patch: pytest.MonkeyPatch
    serve: Serve
    settings: dict[str, Any]
    arguments: dict[str, str]
    held: ExitStack

    def file(self, name: str, text: str = "", mode: int = 0o600) -> Path:
        """A new file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path


def another_ray_than_asked_for(on: Machine) -> None:
    true = metadata.version
    on.patch.setattr(machine.metadata, "version", lambda name: "2.40.0" if name == "ray" else true(name))
    on.arguments["address"] = on.serve(body={"ray_version": "2.40.0"})


def a_package_named_platform(on: Machine) -> None:
    on.patch.setenv("PYTHONPATH", str(on.file("tree/platform/__init__.py").parents[1]))


def a_library_that_does_not_load(on: Machine) -> None:
    broken = on.file("libraries/soundfile.py", "raise OSError('libsndfile.so: cannot open')")
    on.patch.setenv("PYTHONPATH", os.pathsep.join([str(broken.parent), os.environ.get("PYTHONPATH", "")]))
    on.patch.setattr(machine, "_NATIVE", ("soundfile",))


def few_open_files(on: Machine) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # the fixture sets it back


def a_home_that_cannot_be_written(on: Machine) -> None:
    on.settings["home"] = "/proc/nothing/home"


def full(on: Machine, place: Path) -> None:
    """Writing there fails as on a full disk."""
    true = tempfile.TemporaryFile

    def temporary_file(*arguments: Any, **options: Any) -> Any:
        file = true(*arguments, **options)
        if Path(options["dir"]) != place:
            return file
        file.close()
        return Path("/dev/full").open("wb", buffering=0)

    on.patch.setattr(tempfile, "TemporaryFile", temporary_file)


def a_home_on_a_full_disk(on: Machine) -> None:
    full(on, on.folder)


def a_tmpdir_on_a_full_disk(on: Machine) -> None:
    (on.folder / "t").mkdir()
    on.patch.setenv("RAY_TMPDIR", f"{on.folder}/t")
    on.patch.setattr(cluster, "_LONGEST_SOCKET", 1000)
    full(on, on.folder / "t")


def a_tmpdir_of_a_long_path(on: Machine) -> None:
    on.patch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 80}")


def a_locale_without_utf8(on: Machine) -> None:
    on.patch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")


def a_locked_registry(on: Machine) -> None:
    on.settings["tracking"] = {"uri": f"sqlite:///{on.folder}/locked.db"}
    on.patch.setattr(services, "_WAIT_S", 0.1)
    database = sqlite3.connect(on.folder / "locked.db")
    database.execute("BEGIN EXCLUSIVE")
    on.held.callback(database.close)


def a_registry_that_is_no_database(on: Machine) -> None:
    on.settings["tracking"] = {"uri": f"sqlite:///{on.file('text.db', 'x' * 5000)}"}


def a_proxy_before_loopback(on: Machine) -> None:
    on.patch.setenv("http_proxy", "http://proxy.example:3128")


def a_token_that_others_may_read(on: Machine) -> None:
    on.file("auth_token", "0" * 64, 0o644)


def an_mlflow_that_is_away(on: Machine) -> None:
    on.settings["tracking"] = {"uri": "http://127.0.0.1:9"}


def a_store_where_every_writer_wins(on: Machine) -> None:
    def put(self: LocalStorage, path: str, data: bytes) -> bool:
        self.write(path, data)
        return True

    on.patch.setattr(LocalStorage, "put_if_absent", put)


def a_clock_that_is_wrong(on: Machine) -> None:
    on.settings["storage"] = {"s3_endpoint": on.serve(403, date=1_000_000_000)}


def a_cluster_of_another_ray(on: Machine) -> None:
    on.arguments["address"] = on.serve(body={"ray_version": "2.41.0"})


def a_cluster_with_another_token(on: Machine) -> None:
    on.arguments["address"] = on.serve(401)


MISCONFIGURATIONS: dict[Callable[[Machine], None], tuple[str, str]] = {
    another_ray_than_asked_for: ("packages", "ray 2.40.0 is not"),
    a_package_named_platform: ("standard library", "tree/platform/__init__.py, so nothing starts"),
    a_library_that_does_not_load: ("native libraries", "soundfile does not load (OSError: libsndfile.so"),
    few_open_files: ("open files", "at most 1024"),
    a_home_that_cannot_be_written: ("home", "/proc/nothing/home: cannot be written"),
    a_home_on_a_full_disk: ("home", "home: cannot be written (No space left on device)"),
    a_tmpdir_on_a_full_disk: ("temporary files", "t: cannot be written (No space left on device)"),
    a_tmpdir_of_a_long_path: ("temporary files", "bytes too long for sockets"),
    a_locale_without_utf8: ("locale", "file names are read as iso8859-1"),
    a_locked_registry: ("tracking", "locked.db: database is locked"),
    a_registry_that_is_no_database: ("tracking", "text.db: file is not a database"),
    a_proxy_before_loopback: ("proxies", "127.0.0.1 is not exempt"),
    a_token_that_others_may_read: ("token", "can be read by others"),
    an_mlflow_that_is_away: ("tracking", "no server answers"),
    a_store_where_every_writer_wins: ("storage", "ignores If-None-Match"),
    a_clock_that_is_wrong: ("clock", "s against http://127.0.0.1"),
    a_cluster_of_another_ray: ("cluster", "runs Ray 2.41.0"),
    a_cluster_with_another_token: ("cluster", "refuses this token"),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, copy_schema: Callable[[Path], None]) -> str:
    """MLflow's database."""
    home = tmp_path_factory.mktemp("registry")
    settings = Settings(tracking=TrackingSettings(uri=f"sqlite:///{home}/mlflow.db"))
    assert services.tracking(settings).verdict == "warning"
    assert not list(home.iterdir())  # looking makes nothing
    copy_schema(home)
    assert services.tracking(settings).verdict == "warning"
    return settings.tracking_uri


@pytest.fixture
def in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve, registry: str) -> Iterator[Machine]:
    """A machine and services without a fault."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    monkeypatch.setattr(machine, "_NATIVE", ("json",))  # loading them all takes ten seconds
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    settings = {"home": str(tmp_path / "home"), "tracking": {"uri": registry}, "storage": {"s3_endpoint": serve(403)}}
    arguments = {"storage": str(tmp_path / "out"), "address": serve(body={"ray_version": metadata.version("ray")})}
    with ExitStack() as held:
        made = Machine(tmp_path, monkeypatch, serve, settings, arguments, held)
        made.file("auth_token", "0" * 64)
        yield made
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def examined(on: Machine, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, str]]]:
    """Exit code and findings of the command."""
    settings = on.file("settings.yaml", json.dumps(on.settings))
    options = [word for name, value in on.arguments.items() for word in (f"--{name}", value)]
    code = run(["--settings", str(settings), "doctor", *options, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow  # imports MLflow
def test_nothing_is_found_where_nothing_is_wrong(in_order: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = examined(in_order, capsys)
    assert code == 0
    assert not [finding for finding in findings if finding["verdict"] == "broken"], findings


@pytest.mark.slow  # imports MLflow
@pytest.mark.parametrize("plant", MISCONFIGURATIONS, ids=lambda plant: plant.__name__)
def test_each_misconfiguration_is_found_by_its_own_message_and_nothing_else(
    plant: Callable[[Machine], None], in_order: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    check, says = MISCONFIGURATIONS[plant]
    plant(in_order)
    code, findings = examined(in_order, capsys)
    assert code == 3
    [found] = [finding for finding in findings if finding["verdict"] == "broken"]
    assert found["check"] == check
    assert says in found["says"]
    assert found["todo"]


def test_where_nothing_can_start_the_command_still_says_why(tmp_path: Path) -> None:
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "mmva_platform.cli", "doctor"],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"mmva: `import platform` finds {tmp_path / 'platform' / '__init__.py'} instead")
    assert done.stderr.count("\n") == 1


class TestDetails:
    def test_a_requirement_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        true = metadata.version

        def version(name: str) -> str:
            if name == "boto3":
                raise metadata.PackageNotFoundError(name)
            return true(name)

        monkeypatch.setattr("mmva_platform.doctor.machine.metadata.version", version)
        planted(machine.packages(), "boto3 is missing")

    def test_tokens(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / "auth_token"
        planted(machine.token(), "without authentication", "warning")
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        planted(machine.token(), "no token in")
        file.write_text("0" * 64)
        file.chmod(0o644)
        planted(machine.token(), "can be read by others")
        file.chmod(0o600)
        assert machine.token().verdict == "ok"
        file.write_text("")
        planted(machine.token(), "does not contain a token")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        planted(machine.token(), "can run code", "warning")

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

    def test_a_probed_store_is_left_as_it_was(self, tmp_path: Path) -> None:
        assert services.storage(str(tmp_path / "out"), StorageSettings()).verdict == "ok"
        assert [entry.path for entry in open_storage(str(tmp_path / "out")).list()] == []

    @pytest.mark.slow  # imports MLflow
    def test_an_mlflow_that_is_refused_and_one_whose_password_is_not_shown(self) -> None:
        away = Settings(tracking=TrackingSettings(uri="http://user:hunter2@127.0.0.1:9"))
        found = services.tracking(away)
        planted(found, "no server answers")
        assert "hunter2" not in found.says
        planted(services.tracking(Settings(tracking=TrackingSettings(uri="file:/tmp/mlruns"))), "MLflow 3 needs")

    @pytest.mark.slow  # imports MLflow
    def test_a_registry_without_a_champion(self, registry: str) -> None:
        found = services.tracking(Settings(tracking=TrackingSettings(uri=registry)))
        planted(found, "0 versions, no champion", "warning")

    def test_an_open_cluster_and_none(self, serve: Serve) -> None:
        ours = {"ray_version": metadata.version("ray")}
        planted(services.cluster(serve(body=ours)), "accepts jobs without a token", "warning")
        planted(services.cluster("http://127.0.0.1:9"), "does not answer")
        planted(services.cluster(serve(404)), "answers 404")


@pytest.mark.slow  # imports MLflow
def test_the_command_says_all_and_what_to_do(in_order: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    in_order.arguments["address"] = "http://127.0.0.1:9"
    options = [word for name, value in in_order.arguments.items() for word in (f"--{name}", value)]
    assert run(["--home", in_order.settings["home"], "doctor", *options]) == 3
    captured = capsys.readouterr()
    assert "ok       storage" in captured.out
    assert "-> check --address, the tunnel to the head" in captured.out
    assert "cluster will not work" in captured.err

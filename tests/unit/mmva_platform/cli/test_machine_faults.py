"""What the user's machine does to a command: one line that names the place and the remedy."""

from __future__ import annotations

import datetime as dt
import errno
import io
import os
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmva.errors import EnvironmentFault, OperationFailed, UsageError
from mmva.files import write_atomically
from mmva_platform import cluster
from mmva_platform.cli.context import emit, exit_code_of, make_settings, set_up_logging
from mmva_platform.cli.main import run
from mmva_platform.doctor import machine

Capture = pytest.CaptureFixture[str]


def one_line(capsys: Capture, code: int, wanted: int) -> str:
    said = capsys.readouterr().err
    assert code == wanted, said
    assert said.startswith("mmva: ")
    assert said.count("\n") == 1
    return said.removeprefix("mmva: ").strip()


def raising(error: BaseException) -> Callable[..., None]:
    def command(*_arguments: object, **_options: object) -> None:
        raise error

    return command


# --- files and disks


def test_a_folder_where_a_file_should_be_written(capsys: Capture, tmp_path: Path) -> None:
    for write in (Path.write_bytes, write_atomically):  # as annotations report --file DIR
        code = exit_code_of(partial(write, tmp_path, b"<html>"))
        assert one_line(capsys, code, 1) == f"{tmp_path}: is a directory; give the name of a file"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EDQUOT])
def test_a_place_that_cannot_be_written_is_named(capsys: Capture, number: int) -> None:
    error = OSError(number, os.strerror(number), "/x/a.html")
    said = one_line(capsys, exit_code_of(raising(error)), 1)
    assert said.startswith(f"/x/a.html: {os.strerror(number).lower()}; ")


def test_a_full_disk_is_found_where_the_error_does_not_name_it(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "full" / "home"
    (tmp_path / "full").mkdir()
    make_settings(None, home)
    full = SimpleNamespace(free=0)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda place: full if Path(place) == home.parent else SimpleNamespace(free=2**40)
    )
    error = OSError(errno.ENOSPC, "No space left on device")
    said = one_line(capsys, exit_code_of(raising(error)), 1)
    assert said == f"{home}: no space left on device; free space there, or choose another place (--home, --out, TMPDIR)"
    failed = OperationFailed("/out/a.parquet: No space left on device")
    failed.__cause__ = error
    assert one_line(capsys, exit_code_of(raising(failed)), 1).endswith("TMPDIR)")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "/x"), OSError("odd"), KeyError("x")])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        exit_code_of(raising(error))


# --- the home and its database


def test_a_home_that_is_a_file(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    code = run(["--home", str(tmp_path / "home"), "models", "list"])
    assert one_line(capsys, code, 2).startswith(f"home {tmp_path / 'home'}: is a file; --home or MMVA_HOME names")


@pytest.mark.slow  # MLflow's schema
def test_an_empty_registry_says_where_it_is(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = tmp_path / "wrong"
    assert run(["--home", str(home), "models", "list"]) == 0
    assert capsys.readouterr().out.startswith(f"no versions yet in sqlite:///{home}/mlflow.db; ")
    code = run(["--home", str(home), "models", "show", "champion"])
    assert one_line(capsys, code, 2).endswith(f"it has no versions at all in sqlite:///{home}/mlflow.db")


def test_a_locked_database_names_the_home_and_the_remedy(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("mmva_platform.tracking.store._LOCKED_S", 0.1)
    monkeypatch.setattr("mmva_platform.tracking.store.quiet", lambda: pytest.fail("MLflow may retry for minutes"))
    database = sqlite3.connect(tmp_path / "mlflow.db")
    database.execute("BEGIN EXCLUSIVE")
    code = run(["--home", str(tmp_path), "models", "list"])
    database.close()
    said = one_line(capsys, code, 2)
    assert f"{tmp_path}/mlflow.db" in said
    assert said.endswith("; another process holds it: wait for that process, or find it with fuser and end it")


@pytest.mark.parametrize(
    ("text", "todo"),
    [("database is locked", "another process holds it"), ("database or disk is full", "free space there"),
     ("attempt to write a readonly database", "change the"), ("file is not a database", "move that file")],
)  # fmt: skip
def test_a_database_that_fails_later_is_one_line(capsys: Capture, tmp_path: Path, text: str, todo: str) -> None:
    settings = make_settings(None, tmp_path)
    error = RuntimeError("(sqlite3.OperationalError) and three lines of SQL\n\n")
    error.__cause__ = sqlite3.OperationalError(text)
    said = one_line(capsys, exit_code_of(raising(error)), 1)
    assert said.startswith(f"MLflow's database {settings.tracking_uri}: {text}; {todo}")


# --- text


def test_a_path_that_is_not_utf8(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    code = run(["annotate", str(odd), "--model", "m", "--out", "o"])
    assert one_line(capsys, code, 2).startswith("argument b'")
    odd.mkdir()
    monkeypatch.chdir(odd)
    monkeypatch.delenv("MMVA_HOME", raising=False)
    assert "caf\\xe9/mmva-home': is not UTF-8" in one_line(capsys, run(["models", "list"]), 2)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    code = run(["annotate", str(odd), "--model", "m", "--out", "o"])
    assert "encoding is ascii" in one_line(capsys, code, 2)
    set_up_logging(verbose=False)
    assert "set PYTHONUTF8=1" in capsys.readouterr().err


def test_a_terminal_that_is_not_utf8_shows_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    set_up_logging(verbose=False)
    emit("café \udce9", None, as_json=False)
    assert exit_code_of(raising(UsageError("café"))) == 2
    for stream, expected in zip(streams, (b"caf\\xe9 \\udce9\n", b"mmva: caf\\xe9\n"), strict=True):
        stream.flush()
        assert stream.buffer.getvalue() == expected  # type: ignore[attr-defined] # it is a BytesIO
    monkeypatch.undo()
    set_up_logging(verbose=False)


# --- TMPDIR


def test_a_tmpdir_is_too_long_where_rays_own_check_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import get_default_ray_temp_dir
    from ray._private.utils import validate_socket_filepath

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    now = dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d_%H-%M-%S_%f")
    agreed = set()
    for length in range(20, 60):
        monkeypatch.setenv("TMPDIR", "/" + "x" * length)
        try:
            validate_socket_filepath(f"{get_default_ray_temp_dir()}/session_{now}_{os.getpid()}/sockets/plasma_store")
            fits = True
        except OSError:
            fits = False
        fault = cluster.temporary_fault()
        assert (fault is None or "too long" not in fault[0]) == fits
        agreed.add(fits)
    assert agreed == {True, False}


@pytest.mark.parametrize("fault", ["long", "full", "forbidden"])
def test_ray_is_not_started_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    import ray

    place = tmp_path / ("x" * 80)
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_options: pytest.fail("Ray was started"))
    if fault != "long":
        monkeypatch.setattr(cluster, "_LONGEST_SOCKET", 1000)
    if fault == "full":
        monkeypatch.setattr("shutil.disk_usage", lambda _place: SimpleNamespace(free=1e6))
    if fault == "forbidden":
        monkeypatch.setattr(tempfile, "TemporaryFile", raising(PermissionError(13, "Permission denied")))
    words = {"long": "bytes too long for sockets", "full": "1 MB free", "forbidden": "cannot be written (Permission"}
    with pytest.raises(EnvironmentFault) as caught, cluster.ray_session():
        pass
    assert str(caught.value).startswith(f"cluster: Ray cannot start: TMPDIR {place}: ")
    assert words[fault] in str(caught.value)
    assert "; set TMPDIR to a" in str(caught.value)


def test_output_that_shows_ascii_only_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    found = machine.locale()
    assert (found.verdict, found.says) == ("warning", "output is ascii: other characters are shown as \\u....")


# --- Ctrl-C and SIGTERM


def told_to_stop(*_arguments: object, **_options: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def as_ray_answers_sigterm(*_arguments: object, **_options: object) -> None:
    sys.exit(signal.SIGTERM)


STOPS: list[tuple[Callable[..., None], int, str]] = [
    (raising(KeyboardInterrupt()), 130, "Ctrl-C"),
    (told_to_stop, 143, "SIGTERM"),
    (as_ray_answers_sigterm, 143, "SIGTERM"),
]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    ("line", "target", "says"),
    [
        ("annotate c --model m --out o", "annotation.run.runner.annotate", "the same command resumes"),
        ("annotations update o", "annotation.run.update.update", "the same command resumes"),
        ("train --set dataset=d", "workflows.train_and_register", "mmva train --resume RUN starts at the last"),
        ("quickstart", "quickstart.flow.run_quickstart", "begins again, in a new folder"),
        ("embed dataset", "datasets.embedding.run.embed_dataset", "the same command resumes"),
        (
            "data import --images-csv i.csv --media m --out o",
            "datasets.importing.run.import_dataset",
            "the same command begins again, and makes the same dataset",
        ),
        ("--home annotate models list", "tracking.promotion.reconcile", ""),
    ],
)
def test_what_is_stopped_says_how_to_resume(  # noqa: PLR0917 - three of them are a case
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    target: str,
    says: str,
    stop: tuple[Callable[..., None], int, str],
) -> None:
    how, code, by = stop
    module, _, name = target.rpartition(".")
    monkeypatch.setattr(import_module(f"mmva_platform.{module}"), name, how)
    said = one_line(capsys, run(line.split()), code)
    assert said.startswith(f"stopped by {by}")
    assert says in said
    assert (";" in said) == bool(says), "nothing to resume, and nothing said about it"

"""fetch_folder: one download for all processes of a machine, and never a part of one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import tracemalloc
import uuid
from pathlib import Path
from typing import Any, Self

import boto3
import pytest

from mmva_platform.settings import StorageSettings
from mmva_platform.storage import StoragePathError, open_storage
from mmva_platform.storage.fetch import fetch_folder

FETCH = """
import sys, time
from pathlib import Path
from mmva_platform.settings import StorageSettings
from mmva_platform.storage.fetch import fetch_folder
uri, endpoint, cache, ready, go = sys.argv[1:]
Path(ready).touch()
while not Path(go).exists():
    time.sleep(0.01)
print(fetch_folder(uri, Path(cache), StorageSettings(s3_endpoint=endpoint)))
"""
KILLED = """
import os, signal, shutil, sys
from pathlib import Path
from mmva_platform.settings import StorageSettings
from mmva_platform.storage.fetch import fetch_folder
uri, endpoint, cache = sys.argv[1:]
def half(source, copy, length):
    copy.write(source.read(1))
    copy.flush()
    os.kill(os.getpid(), signal.SIGKILL)
shutil.copyfileobj = half
fetch_folder(uri, Path(cache), StorageSettings(s3_endpoint=endpoint))
"""


@pytest.fixture
def model(s3_endpoint: str) -> Any:
    storage = open_storage(f"s3://media/{uuid.uuid4()}", StorageSettings(s3_endpoint=s3_endpoint, max_attempts=2))
    storage.write("config.json", b"{}")
    storage.write("weights/part.bin", b"1234")
    return storage


def test_two_processes_download_once(model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    go, cache = tmp_path / "go", tmp_path / "cache"
    ready = [tmp_path / f"ready-{number}" for number in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, model.uri, model.settings.s3_endpoint, str(cache), str(each), str(go)],
            stdout=subprocess.PIPE, text=True,
        )
        for each in ready
    ]  # fmt: skip
    while not all(each.exists() for each in ready):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    with caplog.at_level("INFO", logger="werkzeug"):
        go.touch()
        outputs = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 2
    (folder,) = outputs
    assert (Path(folder) / "weights" / "part.bin").read_bytes() == b"1234"
    gets = [record.getMessage() for record in caplog.records if f"GET /media/{model.prefix}" in record.getMessage()]
    assert len(gets) == 2, gets


def test_a_killed_download_is_begun_again(model: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, model.uri, model.settings.s3_endpoint, str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    (left,) = [path for path in tmp_path.rglob("*.json") if path.is_file()]
    assert left.read_bytes() == b"{"
    folder = fetch_folder(model.uri, tmp_path, model.settings)
    assert (folder / "weights" / "part.bin").read_bytes() == b"1234"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


def test_a_failed_download_leaves_nothing(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_folder(model.uri, tmp_path, model.settings)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_key_cannot_leave_the_folder(model: Any, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=model.settings.s3_endpoint, region_name="us-east-1")
    client.put_object(Bucket="media", Key=f"{model.prefix}../../stolen", Body=b"1")
    client.close()
    with pytest.raises(StoragePathError, match="stolen"):
        fetch_folder(model.uri, tmp_path / "cache", model.settings)
    assert not list(tmp_path.rglob("stolen"))


def test_files_are_not_held_in_memory(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 120 * 2**20
    monkeypatch.setattr(model.__class__, "open", lambda *_arguments: Zeros(size))
    tracemalloc.start()
    folder = fetch_folder(model.uri, tmp_path, model.settings)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (folder / "config.json").stat().st_size == size
    assert peak_bytes < 40 * 2**20


class Zeros:
    """A file of zeros."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, count: int) -> bytes:
        count = min(count, self.left)
        self.left -= count
        return bytes(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

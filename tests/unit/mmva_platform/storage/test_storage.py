"""Both back ends keep the same promises; S3 is moto's server on loopback."""

from __future__ import annotations

import errno
import os
import pickle
import re
import socket
import threading
from io import FileIO
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import (
    Storage,
    StorageError,
    StorageNotFound,
    StoragePathError,
    StorageTooLargeError,
    StorageUnavailable,
    open_storage,
    probe_put_if_absent,
    read_uri,
    split_uri,
)
from mmva_platform.storage.fetch import fetch_folder


@pytest.fixture
def s3(s3_endpoint: str) -> StorageSettings:
    return StorageSettings(s3_endpoint=s3_endpoint, max_attempts=2, connect_timeout_s=2, read_timeout_s=5)


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "root")
    return open_storage("s3://media/root", request.getfixturevalue("s3"))


def test_what_is_written_is_read_listed_and_sized(storage: Storage) -> None:
    storage.write("b/two.bin", b"22")
    storage.write("b/two.bin", b"222")
    storage.write("a one?#%.txt", b"")
    assert storage.read("b/two.bin") == b"222"
    assert storage.size("b/two.bin") == 3
    listed = list(storage.list())
    assert [(entry.path, entry.size) for entry in listed] == [("a one?#%.txt", 0), ("b/two.bin", 3)]
    storage.write("b/two.bin", b"333")
    again = list(storage.list())
    assert (again[0].etag == listed[0].etag, again[1].etag == listed[1].etag) == (True, False)
    assert (storage.exists("b/two.bin"), storage.exists("b"), storage.exists("c")) == (True, False, False)


def test_no_more_is_read_than_the_caller_takes(storage: Storage) -> None:
    storage.write("a", b"1234")
    assert storage.read("a", most=4) == b"1234"
    with pytest.raises(StorageTooLargeError, match="a: 4 bytes, the limit is 3"):
        storage.read("a", most=3)
    assert storage.read("a") == b"1234"


def test_a_prefix_is_a_prefix_of_the_path_not_a_folder(storage: Storage) -> None:
    for path in ("x/a-1", "x/a-2", "x/b", "xa"):
        storage.write(path, b"1")
    assert [entry.path for entry in storage.list("x/a")] == ["x/a-1", "x/a-2"]
    assert [entry.path for entry in storage.list("x/")] == ["x/a-1", "x/a-2", "x/b"]
    assert [entry.path for entry in storage.list("x")] == ["x/a-1", "x/a-2", "x/b", "xa"]
    assert list(storage.list("none/")) == []


def test_of_eight_racing_writers_one_wins_and_its_bytes_stand(storage: Storage) -> None:
    barrier = threading.Barrier(8)
    won: list[bytes] = []

    def race(number: int) -> None:
        data = bytes([number]) * 100_000
        barrier.wait()
        if storage.put_if_absent("commits/0.json", data):
            won.append(data)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("commits/0.json") == won[0]
    assert [entry.path for entry in storage.list()] == ["commits/0.json"]


def test_put_if_absent_loses_even_with_the_same_bytes(storage: Storage) -> None:
    assert storage.put_if_absent("a", b"same")
    assert not storage.put_if_absent("a", b"same")


def test_missing_is_not_found(storage: Storage) -> None:
    with pytest.raises(StorageNotFound, match="none"):
        storage.read("none")
    with pytest.raises(FileNotFoundError):
        storage.size("none")


@pytest.mark.parametrize("path", ["../up", "a/../../up", "/etc/passwd", "a//b", "", ".", "a\0b", "\udc80"])
def test_paths_that_leave_the_root_or_no_storage_holds(storage: Storage, path: str) -> None:
    with pytest.raises(StoragePathError):
        storage.join(path)
    with pytest.raises(UsageError):
        storage.put_if_absent(path, b"")
    with pytest.raises(OperationFailed):
        list(storage.list("../"))
    key_of_s3 = storage.uri.startswith("s3://") and path not in {"", "a\0b", "\udc80"}  # see test_storage_walk
    for operation in () if key_of_s3 else (storage.read, storage.exists, storage.size, storage.local_path):
        with pytest.raises(StoragePathError):
            operation(path)


def test_what_is_deleted_is_gone_and_deleting_nothing_is_nothing(storage: Storage) -> None:
    storage.write("a", b"1")
    storage.delete("a")
    storage.delete("a")
    assert list(storage.list()) == []


def test_a_store_with_one_winner_passes_the_probe_and_nothing_is_left(storage: Storage) -> None:
    probe_put_if_absent(storage)
    assert list(storage.list()) == []


def test_a_store_that_ignores_the_condition_is_named(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def always_wins(path: str, data: bytes) -> bool:
        storage.write(path, data)
        return True

    monkeypatch.setattr(storage, "put_if_absent", always_wins)
    with pytest.raises(CheckFailed, match=re.escape(storage.described) + ": ignores If-None-Match.*use AWS S3"):
        probe_put_if_absent(storage)
    assert list(storage.list()) == []


def test_a_store_that_only_looks_before_it_writes_fails_the_probe(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Barrier(4)

    def look_then_write(path: str, data: bytes) -> bool:
        there = storage.exists(path)
        if data.isdigit():  # the probe's racing puts
            looked.wait()
        if not there:
            storage.write(path, data)
        return not there

    monkeypatch.setattr(storage, "put_if_absent", look_then_write)
    with pytest.raises(CheckFailed, match="of 4 racing put-if-absent calls 4 won"):
        probe_put_if_absent(storage)


def test_a_store_that_takes_the_losers_bytes_fails_the_probe(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(path: str, data: bytes) -> bool:
        there = storage.exists(path)
        storage.write(path, data)
        return not there

    monkeypatch.setattr(storage, "put_if_absent", overwrite)
    with pytest.raises(CheckFailed, match="takes its bytes"):
        probe_put_if_absent(storage)


def test_a_used_storage_survives_pickling(storage: Storage) -> None:
    storage.write("a", b"1")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read("a") == b"1"
    assert copy.uri == storage.uri


def test_full_uris_open_again(storage: Storage, request: pytest.FixtureRequest) -> None:
    storage.write("folder/a b.txt", b"1")
    settings = None if storage.local_path("a") else request.getfixturevalue("s3")
    assert read_uri(storage.join("folder/a b.txt"), settings) == b"1"


def test_a_folder_of_any_storage_as_a_local_folder(storage: Storage, tmp_path: Path, s3: StorageSettings) -> None:
    storage.write("model/config.json", b"1")
    storage.write("model/sub/weights", b"2")
    folder = fetch_folder(storage.join("model"), tmp_path / "cache", s3)
    assert (folder / "sub" / "weights").read_bytes() == b"2"
    storage.write("model/config.json", b"newer")
    again = fetch_folder(storage.join("model"), tmp_path / "cache", s3)
    assert (again / "config.json").read_bytes() == b"newer"
    with pytest.raises(UsageError, match="no files"):
        fetch_folder(storage.join("none"), tmp_path / "cache", s3)


# ---- local only


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    old, new = b"o" * 300_000, b"n" * 300_000
    storage.write("a", old)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(storage.read("a"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        storage.write("a", new)
        storage.write("a", old)
    done.set()
    reader.join()
    assert seen <= {old, new}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path)
    storage.write("a", b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OperationFailed, match="No space left"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_in_the_place_of_a_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.write("a/b", b"1")
    with pytest.raises(OperationFailed, match=str(tmp_path / "a")):
        storage.read("a")
    with pytest.raises(StorageNotFound):
        storage.read("a/b/c")


def test_home_and_file_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_storage("~/data").uri == str(tmp_path / "data")
    assert open_storage(f"file://{tmp_path}/a%20b").uri == str(tmp_path / "a b")
    assert split_uri(f"file://{tmp_path}/a%20b/c%20d.csv") == (str(tmp_path / "a b"), "c d.csv")


@pytest.mark.parametrize(
    ("uri", "folder", "name"),
    [
        ("s3://b/x.csv", "s3://b", "x.csv"),
        ("s3://b/a/x.csv", "s3://b/a", "x.csv"),
        ("x.csv", ".", "x.csv"),
        ("/x.csv", "/", "x.csv"),
    ],
)
def test_split_uri(uri: str, folder: str, name: str) -> None:
    assert split_uri(uri) == (folder, name)


@pytest.mark.parametrize("uri", ["gs://bucket/a", "s3://", "file://host/a", "http://example.org/a"])
def test_a_uri_that_cannot_be_opened_says_what_to_write(uri: str) -> None:
    with pytest.raises(UsageError, match="s3://") if not uri.startswith("file") else pytest.raises(UsageError):
        open_storage(uri)


@pytest.mark.parametrize("uri", ["s3://bucket", "folder/", "s3://bucket/"])
def test_a_uri_without_a_file(uri: str) -> None:
    with pytest.raises(UsageError, match="names no file"):
        split_uri(uri)


def test_a_file_that_is_longer_than_its_size_says_is_read_with_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path)
    storage.write("grows", b"1234567890")
    assert open_storage("/proc/self").read("limits", most=100_000) == Path("/proc/self/limits").read_bytes()
    asked: list[int] = []
    read = FileIO.read

    class Watched(FileIO):
        def read(self, size: int = -1, /) -> bytes:
            asked.append(size)
            return read(self, size)

    monkeypatch.setattr(Path, "open", lambda path, *_mode, **_buffering: Watched(path))
    with pytest.raises(StorageTooLargeError, match="the limit is 10"):
        open_storage("/proc/self").read("limits", most=10)
    assert sum(asked) == 11
    asked.clear()
    monkeypatch.setattr("mmva_platform.storage.local._regular_size", lambda _path: 4)  # it grew since
    with pytest.raises(StorageTooLargeError, match="the limit is 6"):
        storage.read("grows", most=6)
    assert storage.read("grows", most=10) == b"1234567890"


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_pipes_sockets_and_devices_are_refused_without_opening(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    listener = socket.socket(socket.AF_UNIX)
    if kind == "socket":
        listener.bind(str(path))
    storage = open_storage(path.parent)
    for operation in (storage.read, storage.open):
        with pytest.raises(StorageError, match=f"{path}: not a regular file"):
            operation(path.name)
    with pytest.raises(StorageError, match="not a regular file"):
        storage.read(path.name, most=10)
    listener.close()


def test_a_file_system_without_hard_links_is_told_by_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(_source: Path, _target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    with pytest.raises(CheckFailed, match="has no hard links; use"):
        probe_put_if_absent(open_storage(tmp_path))
    assert list(tmp_path.iterdir()) == []


# ---- S3 only


def test_a_server_without_conditional_puts_is_told_by_the_probe(
    s3: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage("s3://media/root", s3)

    def refuse(**_arguments: object) -> object:
        raise _error(501, "NotImplemented")

    monkeypatch.setattr(storage._client, "put_object", refuse)
    with pytest.raises(CheckFailed, match=r"does not support that.*use AWS S3"):
        probe_put_if_absent(storage)


def test_a_put_whose_answer_was_lost_has_won(s3: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage("s3://media/root", s3)
    client = storage._client
    put = client.put_object

    def put_twice(**arguments: object) -> object:
        put(**arguments)  # arrives, but nobody hears the answer: botocore sends it again
        return put(**arguments)

    monkeypatch.setattr(client, "put_object", put_twice)
    assert storage.put_if_absent("a", b"mine")
    monkeypatch.undo()
    assert not storage.put_if_absent("a", b"mine")


def test_a_conflict_is_asked_again(s3: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage("s3://media/root", s3)
    client = storage._client
    put = client.put_object
    answers = [_error(409, "ConditionalRequestConflict")]

    def conflict_first(**arguments: object) -> object:
        if answers:
            raise answers.pop()
        return put(**arguments)

    monkeypatch.setattr(client, "put_object", conflict_first)
    assert storage.put_if_absent("a", b"1")


def test_no_such_bucket_and_no_server(s3: StorageSettings) -> None:
    with pytest.raises(StorageNotFound, match="no such bucket"):
        list(open_storage("s3://none", s3).list())
    nobody = s3.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})
    with pytest.raises(StorageUnavailable, match="2 attempts"):
        open_storage("s3://media", nobody).read("a")


def _error(status: int, code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Operation")

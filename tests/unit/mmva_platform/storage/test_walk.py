"""Storage.walk: other people's files as they are; what cannot be listed is reported and costs only itself."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.s3.models import s3_backends

from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Storage, StorageDenied, StorageError, StoragePathError, open_storage, read_uri

ODD_KEYS = [
    "2024//x.jpg", "./x.jpg", "../x.jpg", "/x.jpg", "a/../../x.jpg", "https%3A%2F%2Fexample.com%2Fa.jpg",
    "a%2F%2Fb.jpg", "back\\\\slash.jpg", "trailing .jpg ", " leading.jpg", "plus+a b.jpg", "caf\u00e9.jpg",
    "cafe\u0301.jpg", "q?x#y.jpg",
]  # fmt: skip


class Walk:
    """A walk's paths, and what it left out."""

    def __init__(self, storage: Storage, prefix: str = "") -> None:
        self.skipped: dict[str, str] = {}
        self.entries = list(storage.walk(prefix, lambda path, reason: self.skipped.update({path: reason})))
        self.paths = [entry.path for entry in self.entries]


@pytest.fixture
def bucket(s3_endpoint: str) -> Storage:
    return open_storage(f"s3://media/{uuid.uuid4()}", StorageSettings(s3_endpoint=s3_endpoint, max_attempts=2))


def put(storage: Any, *keys: str) -> None:
    """As another program stores objects: any key; the data is the key itself."""
    client = boto3.client("s3", endpoint_url=storage.settings.s3_endpoint, region_name="us-east-1")
    for key in keys:
        client.put_object(Bucket="media", Key=storage.prefix + key, Body=key.encode())
    client.close()


def test_every_key_of_s3_is_listed_and_read_as_it_is(bucket: Any) -> None:
    put(bucket, *ODD_KEYS, "folder/")
    walk = Walk(bucket)
    assert sorted(walk.paths) == sorted(ODD_KEYS)
    assert walk.skipped == {}
    for entry in walk.entries:
        assert bucket.read(entry.path).decode() == entry.path
        assert bucket.open(entry.path).read().decode() == entry.path
        assert bucket.size(entry.path) == entry.size == len(entry.path.encode())
        assert bucket.exists(entry.path)
        assert bucket.uri_of(entry.path) == f"{bucket.uri}/{entry.path}"
        assert read_uri(bucket.uri_of(entry.path), bucket.settings).decode() == entry.path


def test_our_own_files_keep_plain_names(bucket: Storage) -> None:
    for path in ("a//b", "../x", "/x", "./x"):
        for operation in (bucket.write, bucket.put_if_absent):
            with pytest.raises(StoragePathError):
                operation(path, b"")
        for operation in (bucket.delete, bucket.join):
            with pytest.raises(StoragePathError):
                operation(path)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_more_than_one_page(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    storage = open_storage(tmp_path) if place == "local" else request.getfixturevalue("bucket")
    paths = sorted(f"{folder}/{number:04}.bin" for folder in ("a", "a-b", "c") for number in range(450))
    for path in paths:
        if place == "local":
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_bytes(b"22")
        else:
            put_quickly(storage, path)
    assert Walk(storage).paths == paths
    assert Walk(storage, "a/02").paths == [path for path in paths if path.startswith("a/02")]
    assert Walk(storage, "none/").paths == []
    listed = list(storage.list())
    assert [entry.path for entry in listed] == paths
    assert {entry.size for entry in listed} == {2}


def put_quickly(storage: Any, path: str) -> None:
    """Straight into moto's memory: 1,350 requests would take a minute."""
    s3_backends["123456789012"]["aws"].put_object("media", storage.prefix + path, b"22")


# ---- local folders


def test_links_are_followed_below_the_root_only(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "sub").mkdir(parents=True)
    (outside / "secret.jpg").write_bytes(b"1")
    (root / "a" / "deep").mkdir(parents=True)
    (root / "a" / "x.jpg").write_bytes(b"22")
    (root / "linked").symlink_to("a")
    (root / "one.jpg").symlink_to("a/x.jpg")
    (root / "absolute").symlink_to(root / "a")
    (root / "a" / "deep" / "up").symlink_to("..")
    (root / "dangling.jpg").symlink_to("none.jpg")
    (root / "loop").symlink_to("loop")
    (root / "out").symlink_to(outside)
    (root / "out.jpg").symlink_to("../outside/secret.jpg")
    walk = Walk(open_storage(root))
    assert walk.paths == ["a/x.jpg", "absolute/x.jpg", "linked/x.jpg", "one.jpg"]
    assert {entry.size for entry in walk.entries} == {2}
    up = "a link to a folder above it"
    assert walk.skipped == {
        "a/deep/up": up, "absolute/deep/up": up, "linked/deep/up": up, "dangling.jpg": "a dangling link",
        "loop": "too many levels of symbolic links", "out": "a link that leaves the root",
        "out.jpg": "a link that leaves the root",
    }  # fmt: skip


def test_a_root_that_is_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.jpg").write_bytes(b"1")
    (tmp_path / "real" / "y.jpg").symlink_to("x.jpg")
    (tmp_path / "link").symlink_to("real")
    assert Walk(open_storage(tmp_path / "link")).paths == ["x.jpg", "y.jpg"]


def test_what_is_no_regular_file_is_left_out_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "x.jpg").write_bytes(b"1")
    (tmp_path / ".mmva-tmp-1").write_bytes(b"1")
    (tmp_path / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"1")
    walk = Walk(open_storage(tmp_path))
    assert walk.paths == ["x.jpg"]
    assert walk.skipped == {"pipe.jpg": "not a regular file", "bad\udcff.jpg": "its name is not UTF-8"}


def test_an_unreadable_folder_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("a/x.jpg", "b/x.jpg", "c/x.jpg"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(b"1")
    forbid(monkeypatch, tmp_path / "b")
    walk = Walk(open_storage(tmp_path))
    assert walk.paths == ["a/x.jpg", "c/x.jpg"]
    assert walk.skipped == {"b": "permission denied"}
    with pytest.raises(StorageError, match=f"{tmp_path}/b: cannot be listed"):  # our own files are never left out
        list(open_storage(tmp_path).list())


def test_a_file_deleted_during_the_walk_is_no_error(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"1")
    listing = open_storage(tmp_path).list()
    assert next(listing).path == "a"
    (tmp_path / "b").unlink()
    assert [entry.path for entry in listing] == ["c"]


def test_an_unreadable_root_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, tmp_path)
    with pytest.raises(StorageDenied, match=str(tmp_path)):
        Walk(open_storage(tmp_path))
    assert Walk(open_storage(tmp_path / "none")).paths == []


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Permissions do not stop root, who runs tests in containers."""
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)


def test_what_is_left_out_is_logged_without_a_callback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "dangling.jpg").symlink_to("none.jpg")
    assert list(open_storage(tmp_path).walk()) == []
    assert "dangling.jpg: left out (a dangling link)" in caplog.text


@given(st.sets(st.text(st.sampled_from("ab-.0\u00e9/"), min_size=1, max_size=6), max_size=12))
def test_local_paths_come_in_the_order_of_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    root = tmp_path_factory.mktemp("walk")
    for name in names:
        path = root / "/".join(f"n{part}" for part in name.split("/"))
        if not path.exists() and not any(parent.is_file() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"1")
    paths = Walk(open_storage(root)).paths
    expected = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    assert paths == sorted(expected, key=str.encode)

"""Storage.open by range requests, and Storage.filesystem for pyarrow."""

from __future__ import annotations

import io
import random
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from pyarrow import dataset, fs

from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Storage, StorageDenied, StorageError, StorageNotFound, open_storage
from mmva_platform.storage.s3 import BUFFER_BYTES


@pytest.fixture
def bucket(s3_endpoint: str) -> Storage:
    return open_storage(f"s3://media/{uuid.uuid4()}", StorageSettings(s3_endpoint=s3_endpoint, max_attempts=2))


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


@pytest.fixture
def gets(bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ranges that were asked for."""
    return watched(bucket, monkeypatch)


def watched(storage: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    get_object: Callable[..., Any] = storage._client.get_object

    def get(**request: Any) -> Any:
        asked.append(request.get("Range", "whole"))
        return get_object(**request)

    monkeypatch.setattr(storage._client, "get_object", get)
    return asked


def parquet_of(groups: int, rows: int, columns: int = 6) -> bytes:
    random_bytes = random.Random(1).randbytes
    names = [f"c{number}" for number in range(columns)]
    target = io.BytesIO()
    schema = pa.schema([(name, pa.binary()) for name in names] + [("group", pa.int32())])
    with pq.ParquetWriter(target, schema) as writer:
        for group in range(groups):
            values = {name: [random_bytes(40) for _ in range(rows)] for name in names}
            writer.write_table(pa.table(values | {"group": pa.array([group] * rows, pa.int32())}, schema))
    return target.getvalue()


def test_an_opened_file_reads_seeks_and_tells_like_a_local_one(storage: Storage) -> None:
    data = random.Random(2).randbytes(2 * BUFFER_BYTES + 1000)
    storage.write("a.bin", data)
    expected = io.BytesIO(data)
    with storage.open("a.bin") as file:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        for offset, whence, count in (
            (0, 0, 10),
            (-20, 2, 50),
            (BUFFER_BYTES - 5, 0, 10),
            (-3, 1, 8),
            (0, 2, 1),
            (7, 0, -1),
        ):
            assert file.seek(offset, whence) == expected.seek(offset, whence) == file.tell()
            assert file.read(count) == expected.read(count)


def test_an_empty_file(storage: Storage) -> None:
    storage.write("a.bin", b"")
    with storage.open("a.bin") as file:
        assert file.read() == b""
        assert file.seek(0, 2) == 0


def test_an_empty_object_of_aws_has_no_range(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_request: object) -> object:
        raise ClientError({"Error": {"Code": "InvalidRange"}, "ResponseMetadata": {"HTTPStatusCode": 416}}, "GetObject")

    monkeypatch.setattr(bucket._client, "get_object", refuse)
    assert bucket.open("a.bin").read() == b""


def test_opening_what_is_missing(storage: Storage) -> None:
    with pytest.raises(StorageNotFound, match="none"):
        storage.open("none")


def test_one_row_group_costs_few_requests(bucket: Storage, gets: list[str]) -> None:
    data = parquet_of(groups=30, rows=2000)
    assert len(data) > 12 * BUFFER_BYTES
    bucket.write("plan.parquet", data)
    table = pq.ParquetFile(bucket.open("plan.parquet")).read_row_group(11)
    assert set(table["group"].to_pylist()) == {11}
    assert table.equals(pq.ParquetFile(io.BytesIO(data)).read_row_group(11))
    assert len(gets) <= 4
    assert "whole" not in gets


def test_a_small_file_costs_one_request(bucket: Storage, gets: list[str]) -> None:
    bucket.write("plan.parquet", parquet_of(groups=3, rows=10))
    assert pq.ParquetFile(bucket.open("plan.parquet")).read().num_rows == 30
    assert len(gets) == 1


def test_a_large_read_is_one_request(bucket: Storage, gets: list[str]) -> None:
    data = random.Random(3).randbytes(6 * BUFFER_BYTES)
    bucket.write("weights.bin", data)
    with bucket.open("weights.bin") as file:
        assert file.read(4 * BUFFER_BYTES) == data[: 4 * BUFFER_BYTES]
    assert gets == [f"bytes=-{BUFFER_BYTES}", f"bytes=0-{4 * BUFFER_BYTES - 1}"]


def test_an_object_replaced_while_it_is_read_is_an_error(bucket: Storage) -> None:
    bucket.write("a.bin", b"1" * 3 * BUFFER_BYTES)
    with bucket.open("a.bin") as file:
        assert file.read(1) == b"1"
        bucket.write("a.bin", b"2" * 3 * BUFFER_BYTES)
        file.seek(BUFFER_BYTES)
        with pytest.raises(StorageError, match=r"a\.bin: was replaced while it was read") as error:
            file.read(BUFFER_BYTES)
    assert not error.value.environment


def test_a_server_that_ignores_ranges(bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.write("a.bin", b"0123456789")
    get_object: Callable[..., Any] = bucket._client.get_object  # type: ignore[attr-defined]

    def whole(Range: str, **request: Any) -> Any:
        return get_object(**request)

    monkeypatch.setattr(bucket._client, "get_object", whole)  # type: ignore[attr-defined]
    assert bucket.open("a.bin").read() == b"0123456789"


def test_pyarrow_reads_a_folder_by_the_same_credentials(storage: Storage) -> None:
    for number in range(3):
        storage.write(f"table/part-{number}.parquet", parquet_of(groups=1, rows=5))
    filesystem, root = storage.filesystem()
    table = dataset.dataset(f"{root}/table", filesystem=filesystem, format="parquet").to_table(columns=["group"])
    assert table.num_rows == 15
    assert filesystem.get_file_info(f"{root}/none").type == fs.FileType.NotFound


def test_the_file_system_has_the_same_session(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    given: dict[str, Any] = {}
    monkeypatch.setattr(fs, "S3FileSystem", lambda **arguments: given.update(arguments))
    settings = bucket.settings.model_copy(update={"s3_region": "eu-west-3"})
    open_storage("s3://media/x", settings).filesystem()
    assert (given["access_key"], given["secret_key"], given["session_token"]) == ("test", "test", "a-token")
    assert (given["region"], given["endpoint_override"]) == ("eu-west-3", settings.s3_endpoint)
    assert given["force_virtual_addressing"] is False


def test_polars_reads_a_file_by_the_same_credentials(storage: Storage) -> None:
    frame, target = pl.DataFrame({"n": [1, 2, 3]}), io.BytesIO()
    frame.write_parquet(target)
    storage.write("n.parquet", target.getvalue())
    options = storage.object_store_options()
    assert (options == {}) == (storage.local_path("n.parquet") is not None)
    assert pl.read_parquet(storage.join("n.parquet"), storage_options=options).equals(frame)


def test_options_of_rust_libraries_have_the_same_session(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = bucket.object_store_options()
    assert "aws_session_token" not in options
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "aws_region": "us-east-1"}
    assert options.items() >= {**keys, "aws_endpoint": bucket.settings.s3_endpoint, "allow_http": "true"}.items()
    assert options["aws_virtual_hosted_style_request"] == "false"
    encrypted = bucket.settings.model_copy(update={"s3_endpoint": "https://s3.example.org"})
    assert open_storage("s3://media/x", encrypted).object_store_options()["allow_http"] == "false"
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    on_aws = open_storage("s3://media/x", StorageSettings(s3_region="eu-west-3")).object_store_options()
    assert "aws_endpoint" not in on_aws
    assert (on_aws["aws_session_token"], on_aws["aws_region"], on_aws["allow_http"]) == (
        "a-token",
        "eu-west-3",
        "false",
    )
    assert on_aws["aws_virtual_hosted_style_request"] == "true"


def test_a_file_system_without_credentials(bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(StorageDenied, match="no S3 credentials") as error:
        open_storage("s3://media/x", bucket.settings).filesystem()
    assert error.value.environment
    with pytest.raises(StorageDenied, match="no S3 credentials"):
        open_storage("s3://media/x", bucket.settings).object_store_options()


def test_a_bucket_whose_region_is_not_known(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_bucket: str) -> str:
        raise OSError("no answer")

    monkeypatch.setattr(fs, "resolve_s3_region", unknown)
    with pytest.raises(StorageError, match=r"set storage\.s3_region"):
        open_storage("s3://media/x", bucket.settings.model_copy(update={"s3_endpoint": None})).filesystem()

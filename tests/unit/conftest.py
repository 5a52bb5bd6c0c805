"""Fixtures of the tests that run on a local folder and on an S3 server alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import Storage, open_storage

_BUCKETS = itertools.count()


@pytest.fixture(scope="session")
def shared_s3() -> Iterator[str]:
    """An S3 server for tests that make buckets of their own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings for a local folder, then for an S3 server: a test that uses them runs twice."""
    if request.param == "folder":
        return Settings()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    endpoint = request.getfixturevalue("shared_s3")
    return Settings(storage=StorageSettings(s3_endpoint=endpoint, s3_region="us-east-1"))


@pytest.fixture
def storage(settings: Settings, tmp_path: Path) -> Storage:
    """An empty place in a local folder, then in a bucket."""
    if settings.storage.s3_endpoint is None:
        return open_storage(tmp_path / "out", settings.storage)
    import boto3

    bucket = f"bucket-{next(_BUCKETS)}"
    client = boto3.client("s3", endpoint_url=settings.storage.s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    client.close()
    return open_storage(f"s3://{bucket}/va", settings.storage)

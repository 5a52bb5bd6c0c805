"""Fixtures of the tests that run on a local folder and on an S3 server alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import Storage, open_storage


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Settings for a local folder, then for an S3 server: a test that uses them runs twice."""
    if request.param == "folder":
        return Settings()
    return Settings(storage=StorageSettings(s3_endpoint=request.getfixturevalue("s3_endpoint"), s3_region="us-east-1"))


@pytest.fixture
def storage(settings: Settings, tmp_path: Path) -> Storage:
    """An empty place in a local folder, then in a bucket."""
    on_s3 = settings.storage.s3_endpoint is not None
    return open_storage("s3://media/va" if on_s3 else tmp_path / "out", settings.storage)

"""Where a registered model may come from, by name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmva.errors import CheckFailed
from mmva_platform.settings import Settings, TrackingSettings
from mmva_platform.tracking.resolve import _check_place


def check(location: str, home: Path) -> None:
    tracking = TrackingSettings(artifact_roots=("s3://registry/mlflow",))
    _check_place(location, Settings(home=home, tracking=tracking), "models:/mmva/1")


@pytest.mark.parametrize(
    "location",
    ["{home}/artifacts/mmva/1", "file://{home}/artifacts/mmva/1", "s3://registry/mlflow/1/m", "mlflow-artifacts:/1"],
)
def test_what_lies_below_a_root_is_fetched(tmp_path: Path, location: str) -> None:
    check(location.format(home=tmp_path), tmp_path)


@pytest.mark.parametrize(
    "location",
    [
        "/etc", "file:///etc", "{home}/artifacts/../../etc", "{home}/artifacts/%2e%2e/etc", "{home}/artifacts-other/1",
        "artifacts/mmva", "{home}/artifacts/link/1", "s3://registry/mlflow/../other", "s3://registry/mlflow-other/1",
        "s3://other/mlflow/1", "s3://registry/mlflow/%2e%2e/other", "http://169.254.169.254/latest", "dbfs:/x",
        "s3://registry/mlflow/1?x=../..", "runs:/1/model",
    ],
)  # fmt: skip
def test_what_does_not_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "link").symlink_to("/etc")
    with pytest.raises(CheckFailed, match=r"outside the allowed roots .*tracking\.artifact_roots"):
        check(location.format(home=tmp_path), tmp_path)

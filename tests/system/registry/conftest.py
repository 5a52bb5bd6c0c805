"""The two back ends that every test of the registry runs against: SQLite, and MLflow as a deployment has it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest
from registry_cases import FakeExam, registrar
from registry_servers import BUCKET, MlflowServer, Postgres, client_environment, started_seaweed

from mmva_platform.settings import Settings, StorageSettings, TrackingSettings
from mmva_platform.tracking.gate import evidence


@pytest.fixture(scope="session")
def server(group_end: ExitStack, tmp_path_factory: pytest.TempPathFactory) -> MlflowServer:
    """PostgreSQL, SeaweedFS and an MLflow server with basic auth, some 13 s once a session."""
    folder = tmp_path_factory.mktemp("servers")
    postgres = Postgres()
    group_end.callback(postgres.stop)
    postgres.start()
    seaweed = started_seaweed(folder)
    group_end.callback(seaweed.stop)
    seaweed.client().create_bucket(Bucket=BUCKET)
    mlflow = MlflowServer(folder / "mlflow", postgres, seaweed)
    group_end.callback(mlflow.stop)
    mlflow.start()
    return mlflow


@pytest.fixture
def served(server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a client of the server; credentials are in the environment, as for any client."""
    for name, value in client_environment(server).items():
        monkeypatch.setenv(name, value)
    # MLflow's clients come from boto3's default session, which keeps the credentials that an earlier test had.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    return served_settings(server, tmp_path / "home")


def served_settings(server: MlflowServer, home: Path) -> Settings:
    """What a deployment's settings say: tracking server, S3, and the audit log where all machines see it."""
    return Settings(
        home=home,
        storage=StorageSettings(s3_endpoint=server.seaweed.endpoint),
        tracking=TrackingSettings(uri=server.uri, audit=f"s3://{BUCKET}/audit", artifact_roots=(server.artifacts,)),
    )


@pytest.fixture(scope="session")
def sqlite_home(tmp_path_factory: pytest.TempPathFactory, copy_schema: Callable[[Path], None]) -> Path:
    """One SQLite database for the session."""
    home = tmp_path_factory.mktemp("sqlite")
    copy_schema(home)
    return home


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.system)])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Either back end, with a registered model of its own for each test."""
    if request.param == "sqlite":
        base = Settings(home=request.getfixturevalue("sqlite_home"))
    else:
        base = request.getfixturevalue("served")
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[-60:]
    return base.model_copy(update={"tracking": base.tracking.model_copy(update={"model_name": name})})


@pytest.fixture(autouse=True)
def exam(monkeypatch: pytest.MonkeyPatch) -> FakeExam:
    """An exam without a dataset."""
    fake = FakeExam()
    monkeypatch.setattr(evidence, "examine", fake)
    return fake


@pytest.fixture
def registered(settings: Settings, tmp_path: Path, exam: FakeExam) -> Callable[..., int]:
    """Logs and registers made-up runs: see registrar."""
    return registrar(settings, tmp_path, exam)

"""What only a server shows: who may do what, which way artifacts go, no secret written down, a stranger at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_cases import FakeExam, make_result, registrar
from registry_servers import ADMIN, BUCKET, PASSWORD, MlflowServer
from seaweed import SECRET

from mmva.errors import OperationFailed
from mmva_platform.settings import Settings
from mmva_platform.tracking.promotion import promote
from mmva_platform.tracking.registry import list_versions, register
from mmva_platform.tracking.runs import log_training_run
from mmva_platform.tracking.store import open_client

pytestmark = [pytest.mark.slow, pytest.mark.system]


@pytest.fixture
def settings(served: Settings, request: pytest.FixtureRequest) -> Settings:
    tracking = served.tracking.model_copy(update={"model_name": request.node.name[:60]})
    return served.model_copy(update={"tracking": tracking})


@pytest.fixture
def registered(settings: Settings, tmp_path: Path) -> Callable[..., int]:
    return registrar(settings, tmp_path, FakeExam())


def test_the_database_is_postgresql_15(server: MlflowServer) -> None:
    assert server.postgres.version().startswith("15.")


def test_artifacts_go_to_the_store_and_never_through_the_server(
    settings: Settings, server: MlflowServer, tmp_path: Path
) -> None:
    result = make_result(tmp_path, name="direct")
    before = len(server.log())
    run_id = log_training_run(result, settings, predictions={})
    version = register(run_id, settings)
    location = open_client(settings).get_model_version_download_uri(settings.tracking.model_name, str(version))
    assert location.startswith(f"s3://{BUCKET}/mlflow/")
    key = f"{location.removeprefix(f's3://{BUCKET}/')}/artifacts/bundle/model.safetensors"
    stored = server.seaweed.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert stored == (result.bundle_dir / "model.safetensors").read_bytes()
    asked = server.log()[before:]
    assert "/api/2.0/mlflow/runs/create" in asked
    assert "artifacts/" not in asked, "the server's proxy was asked"
    assert server.status("2.0/mlflow-artifacts/artifacts") >= 400, "it has no proxy at all"


def test_a_reader_may_use_the_champion_and_not_move_it(
    settings: Settings, registered: Callable[..., int], server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = registered(), registered()
    promote(first, settings)
    user = {"username": "reader", "password": "a-readers-password"}
    assert server.status("2.0/mlflow/users/create", user) == 200
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-readers-password")
    assert [version.aliases for version in list_versions(settings)] == [("champion",), ()]
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="Permission denied"):
        open_client(settings).set_registered_model_alias(settings.tracking.model_name, "champion", str(second))


def test_a_wrong_password_is_one_line_without_the_password(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-password")
    with pytest.raises(OperationFailed, match="401") as caught:
        list_versions(settings)
    assert "\n" not in str(caught.value)
    assert "not-the-password" not in str(caught.value)


def test_no_secret_is_written_down(
    settings: Settings, registered: Callable[..., int], server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="mmva_platform")
    promote(registered(), settings, "with credentials in the environment")
    client = server.seaweed.client()
    objects = [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET, Prefix="audit/")["Contents"]]
    texts = [client.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode() for key in objects]
    texts += [path.read_text(errors="replace") for path in settings.home.rglob("*") if path.is_file()]
    texts += [caplog.text, server.log(), json.dumps([version.to_json() for version in list_versions(settings)])]
    assert any(f'"who": "{ADMIN}@' in text for text in texts)
    for secret in (PASSWORD, SECRET):
        assert not any(secret in text for text in texts)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A fresh environment with this project's wheel; third-party packages are the test environment's own."""
    folder = tmp_path_factory.mktemp("stranger")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(repository)]
    subprocess.run(install, check=True)
    ours = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # A path line, not site.addsitedir: the editable install of the tests' environment stays out.
    (Path(ours) / "third-party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_a_stranger_uses_the_champion_with_the_package_and_the_address_alone(
    settings: Settings, registered: Callable[..., int], stranger: Path, tmp_path: Path
) -> None:
    promote(registered(), settings)
    (tmp_path / "in.json").write_text(
        json.dumps({"dataframe_records": [{"modality": "caption", "caption": "a calm piano piece"}]})
    )
    uri = f"models:/{settings.tracking.model_name}@champion"
    environment = {
        **{name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MLFLOW_REGISTRY_URI"}},
        "MLFLOW_TRACKING_URI": str(settings.tracking.uri),
        "MLFLOW_S3_ENDPOINT_URL": str(settings.storage.s3_endpoint),
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(stranger), *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    code = (
        "import json, mlflow, mmva, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model({uri!r})\n"
        "found = model.predict(pd.DataFrame({'modality': ['caption'], 'caption': ['a calm piano piece']}))\n"
        "print(json.dumps({'mmva': mmva.__file__, 'valence': found['valence'][0]}))\n"
    )
    loaded = json.loads(run("-c", code).splitlines()[-1])
    assert loaded["mmva"].startswith(str(stranger.parent.parent)), "the wheel's, not the checkout's"
    run("-m", "mlflow", "models", "predict", "-m", uri, "-i", "in.json", "-o", "out.json", "--env-manager", "local")
    (row,) = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert row["valence"] == pytest.approx(loaded["valence"], abs=1e-6)
    assert 0 <= row["valence_low"] <= row["valence"] <= row["valence_high"] <= 1

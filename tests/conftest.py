"""Environment of every test process (no telemetry, no hub, one thread) and the fixtures that folders share."""

from __future__ import annotations

import gc
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",  # Ray Train takes reports when it polls; epochs here take less
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "OMP_NUM_THREADS": "1",
    # Nobody follows the logs of Ray's workers or the load of its nodes here: looking often costs each Ray that runs.
    "LOG_NAME_UPDATE_INTERVAL_S": "600",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
# Groups that take long, the longest first: they begin first, so that no process ends long after the other.
LONG = (
    "ray", "faults", "test_start_pages", "test_job_submission", "test_serving", "test_import_elsewhere", "registry",
    "test_quickstart", "test_serving_docs", "test_training_paper", "test_bulk_nodes", "test_zeroshot", "test_isolation",
)  # fmt: skip
os.environ.update(ENVIRONMENT)
# How long an example takes says more of the machine than of the code.
hypothesis_settings.register_profile("mmva", deadline=None)
hypothesis_settings.load_profile("mmva")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group tests for pytest-xdist, and leave out what needs a GPU where there is none: pytest counts it as deselected.

    A group runs in one process and in one go, so that its servers start once and end with it: Ray takes half of a small
    machine's CPU while it idles.
    """
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not Path("/dev/nvidiactl").exists():
        items[:] = [item for item in items if item not in on_gpu]
        config.hook.pytest_deselected(items=on_gpu)
    groups = [_group(item) for item in items]
    sizes = Counter(groups)
    first = {group: place for place, group in enumerate(LONG)}
    items.sort(
        key=lambda item: (first.get(Path(_group(item)).stem, len(LONG)), -sizes[_group(item)], _group(item))
    )  # fmt: skip
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def pytest_collectstart() -> None:
    """What is imported while tests are collected stays: it is no garbage, and is not looked at again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on garbage is collected, but not looked for in what was there before."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Stop what `group_end` holds after the last test of a group."""
    if _RUNNING in item.config.stash and (nextitem is None or _group(nextitem) != _group(item)):
        item.config.stash[_RUNNING].close()


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """The name of the argument, for contents of files.

    Encoders write random serial numbers, so the bytes differ between processes; pytest-xdist refuses names that differ.
    """
    return argname if isinstance(val, bytes) and len(val) > 32 else None


def _group(item: pytest.Item) -> str:
    """The servers that a test shares, or its file."""
    if "ray_cluster" in getattr(item, "fixturenames", ()):
        return "ray"
    folder = item.path.parent.name
    return folder if folder in {"faults", "registry"} else item.nodeid.partition("::")[0]


REPOSITORY = Path(__file__).resolve().parents[1]
_RUNNING = pytest.StashKey[ExitStack]()


@pytest.fixture(scope="session")
def group_end(pytestconfig: pytest.Config) -> Iterator[ExitStack]:
    """What must end with the group of tests that shares it, and not only with the session."""
    with ExitStack() as running:
        pytestconfig.stash[_RUNNING] = running
        yield running


@pytest.fixture(scope="session", autouse=True)
def _unflushed() -> Iterator[None]:
    """Files are not flushed to the disk, which takes longer than most tests; no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def imemnet_dir() -> Path:
    """Folder of IMEMNet's real labels; the test is skipped by name where it does not exist."""
    folder = Path(os.environ.get("IMEMNET_DIR", ""))
    if not os.environ.get("IMEMNET_DIR") or not (folder / "image_va.csv").exists():
        pytest.skip("IMEMNET_DIR does not name a folder with IMEMNet's labels")
    return folder


@pytest.fixture(scope="session")
def real_dir() -> Path:
    """Folder of media with human ratings; the test is skipped by name where it does not exist."""
    folder = Path(os.environ.get("REAL_DIR", ""))
    if not os.environ.get("REAL_DIR") or not (folder / "oasis" / "labels.csv").exists():
        pytest.skip("REAL_DIR does not name a folder with rated media")
    return folder


@pytest.fixture(scope="session")
def shared_s3() -> Iterator[str]:
    """One S3 server for all tests of a process: s3_endpoint empties it for each."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3_endpoint(shared_s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The S3 server with nothing but an empty bucket "media", and credentials for it in the environment."""
    from moto.s3.models import s3_backends

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = s3_backends["123456789012"]["aws"]  # in this process: no requests
    server.reset()
    server.create_bucket("media", "us-east-1")
    return shared_s3


@pytest.fixture(scope="session")
def copy_schema(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Puts MLflow's database, without runs or models, into a home: making its schema takes 5 s."""
    from sqlalchemy import Engine, event

    from mmva_platform.settings import Settings, TrackingSettings
    from mmva_platform.tracking.store import open_client

    event.listen(Engine, "connect", _unflushed_database)
    made = tmp_path_factory.mktemp("schema") / "mlflow.db"
    open_client(Settings(tracking=TrackingSettings(uri=f"sqlite:///{made}")))

    def copy(home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(made)) as source, closing(sqlite3.connect(home / "mlflow.db")) as target:
            source.backup(target)

    return copy


def _unflushed_database(connection: object, _record: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(scope="session")
def ray_cluster(group_end: ExitStack) -> None:
    """One local Ray with four logical CPUs for all tests that use it."""
    from mmva_platform.cluster import ray_session
    from mmva_platform.settings import ClusterSettings

    group_end.enter_context(ray_session(ClusterSettings(address="local", num_cpus=4, object_store_mb=512)))


@pytest.fixture(scope="session")
def make_tiny_bundle() -> Callable[[Path, int], Path]:
    """Writes an untrained bundle over the tiny encoders: (folder, seed) -> folder."""

    def make(folder: Path, seed: int) -> Path:
        import torch

        from mmva.backbones import load_encoder, preset
        from mmva.models.bundle import save_bundle
        from mmva.models.model import MMVA

        encoders = {modality: load_encoder(spec) for modality, spec in preset("tiny").specs.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
        model.attach_encoders(encoders)
        intervals = {modality: {"valence": 0.2, "arousal": 0.3} for modality in ("image", "music")}
        save_bundle(folder, model, intervals=intervals, card="a test", provenance={})
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_bundle(make_tiny_bundle: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained bundle over the tiny encoders."""
    return make_tiny_bundle(tmp_path_factory.mktemp("models") / "tiny", 0)

"""Environment of every test process (no telemetry, no hub, one thread) and the fixtures that folders share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "OMP_NUM_THREADS": "1",
}
os.environ.update(ENVIRONMENT)
# How long an example takes says more of the machine than of the code.
hypothesis_settings.register_profile("mmva", deadline=None)
hypothesis_settings.load_profile("mmva")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group tests for pytest-xdist, and leave out what needs a GPU where there is none: pytest counts it as deselected.

    A group runs in one process, so that its servers start once: Ray takes half of a small machine's CPU while it idles.
    """
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not Path("/dev/nvidiactl").exists():
        items[:] = [item for item in items if item not in on_gpu]
        config.hook.pytest_deselected(items=on_gpu)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


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


@pytest.fixture
def s3_endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server of this test's own with an empty bucket "media", and credentials for it in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="media")
    client.close()
    yield endpoint
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray with four logical CPUs for the whole session."""
    from mmva_platform.cluster import ray_session
    from mmva_platform.settings import ClusterSettings

    with ray_session(ClusterSettings(address="local", num_cpus=4, object_store_mb=512)):
        yield


@pytest.fixture(scope="session")
def make_tiny_bundle() -> Callable[[Path, int], Path]:
    """Writes an untrained bundle over the tiny encoders: (folder, seed) -> folder."""

    def make(folder: Path, seed: int) -> Path:
        import torch

        from mmva.backbones import load_encoder, preset
        from mmva.bundle import save_bundle
        from mmva.model import MMVA

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

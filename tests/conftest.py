"""Environment of every test process (no telemetry, no hub, one thread) and the fixtures that folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

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
def ray_cluster() -> Iterator[None]:
    """One local Ray with four logical CPUs for the whole session."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=512 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": ENVIRONMENT},
    )
    yield
    ray.shutdown()

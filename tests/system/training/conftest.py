"""One generated data set, embedded by the tiny backbones, for all tests that train on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from inline_pass import install

from mmva_platform.settings import Settings


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory, copy_schema: Callable[[Path], None]) -> Settings:
    """A home of these tests' own."""
    home = tmp_path_factory.mktemp("home")
    copy_schema(home)
    return Settings(home=home, scratch=home / "scratch")


@pytest.fixture(scope="session")
def dataset(settings: Settings, ray_cluster: None) -> str:
    """60 images and 60 clips."""
    from mmva.imemnet.generator import generate
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource

    media, out = settings.home / "media", settings.home / "dataset"
    generate(media, images=60, clips=60, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)  # without actors, which take longer than the work and which other tests start
        import_dataset(ImportConfig(sources=(ImemnetSource(root=str(media)),)), str(out), settings)
        embed_dataset(str(out), "tiny", None, settings)
    return str(out)

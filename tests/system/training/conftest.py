"""One generated data set, embedded by the tiny backbones, for all tests that train on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mmva_platform.settings import Settings


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home of these tests' own."""
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def dataset(settings: Settings, ray_cluster: None) -> str:
    """60 images and 60 clips."""
    from mmva.imemnet.generator import generate
    from mmva_platform.datasets.embedding import embed_dataset
    from mmva_platform.datasets.importing import ImportConfig, import_dataset

    media, out = settings.home / "media", settings.home / "dataset"
    generate(media, images=60, clips=60, seed=0)
    files = {"images_csv": str(media / "image_va.csv"), "music_csv": str(media / "music_va.csv")}
    with shards_in_this_process():
        import_dataset(ImportConfig(media=str(media), **files), str(out), settings)
        embed_dataset(str(out), "tiny", None, settings)
    return str(out)


@contextmanager
def shards_in_this_process() -> Iterator[None]:
    """Import and embed without their pools of actors, which other tests start: they take longer than the work."""
    from mmva_platform.datasets import embedding, writing

    def run_shards(items: Any, worker_class: Any, **options: Any) -> None:
        worker = worker_class(**options["constructor_kwargs"])
        for item in items:
            options["on_result"](worker(dict(item)))

    with pytest.MonkeyPatch.context() as patch:
        for module in (writing, embedding):
            patch.setattr(module, "run_shards", run_shards)
        yield

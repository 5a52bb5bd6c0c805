"""The same import and embedding where it runs in earnest: on S3, and on a real Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmva_platform.datasets.checking import check_dataset
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding import embed_dataset
from mmva_platform.datasets.features import load_features
from mmva_platform.datasets.importing import ImportConfig, import_dataset
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import open_storage


@pytest.fixture
def s3(s3_endpoint: str) -> Settings:
    return Settings(storage=StorageSettings(s3_endpoint=s3_endpoint))


@pytest.mark.usefixtures("inline_cluster")
def test_a_round_trip_on_s3_is_the_one_on_disk(published: Any, s3: Settings, tmp_path: Path) -> None:
    bucket = open_storage("s3://media/imemnet", s3.storage)
    for path in published.media.parent.rglob("*.*"):
        bucket.write(path.relative_to(published.media.parent).as_posix(), path.read_bytes())
    config = ImportConfig(
        images_csv="s3://media/imemnet/image_va.csv",
        music_csv="s3://media/imemnet/music_va.csv",
        media="s3://media/imemnet/media",
    )
    remote = import_dataset(config, "s3://media/dataset", s3)
    local = import_dataset(published.config(), str(tmp_path / "dataset"))
    assert remote.digest == local.digest
    assert check_dataset("s3://media/dataset", s3).ok
    sets = embed_dataset("s3://media/dataset", "tiny", settings=s3)
    assert sets["image"].startswith("s3://media/dataset/embeddings/image-")
    assert len(load_features("s3://media/dataset", "tiny", s3)["caption"]) == 9


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_order_in_which_workers_finish_leaves_no_trace(published: Any, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    out = str(tmp_path / "dataset")
    report = import_dataset(published.config(shard_rows=3), out, settings)
    assert (report.counts["image"].kept, report.counts["music"].kept) == (5, 12)
    assert [shard.name for shard in Dataset.open(out).shards] == sorted(
        shard.name for shard in Dataset.open(out).shards
    )
    assert check_dataset(out).ok
    embed_dataset(out, "tiny", settings=settings)
    features = load_features(out, "tiny")
    assert {modality: len(rows) for modality, rows in features.items()} == {"image": 5, "music": 12, "caption": 9}

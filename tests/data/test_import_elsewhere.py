"""Import and embedding as they run in earnest: on S3, and on a real Ray whose workers die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_pass import install
from PIL import Image
from poison_pictures import HANGS, KILLS, KILLS_ONCE, poison_path

from mmva_platform.annotation import open_annotation, verify
from mmva_platform.datasets.checking import check_dataset
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding.files import EmbeddingSet
from mmva_platform.datasets.embedding.run import embed_dataset
from mmva_platform.datasets.features import load_features
from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
from mmva_platform.datasets.sources.config import ImemnetSource
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
    config = ImportConfig(sources=(ImemnetSource(root="s3://media/imemnet", media="media"),))
    remote = import_dataset(config, "s3://media/dataset", s3)
    local = import_dataset(published.config(), str(tmp_path / "dataset"))
    assert remote.digest == local.digest
    report = check_dataset("s3://media/dataset", s3)
    assert (report.ok, report.warnings) == (True, ())
    sets = embed_dataset("s3://media/dataset", "tiny", settings=s3)
    assert sets["image"].startswith("s3://media/dataset/embeddings/image-")
    assert len(load_features("s3://media/dataset", "tiny", s3)["caption"]) == 9


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_workers_in_parallel_and_the_result_as_ray_datasets(published: Any, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    out = str(tmp_path / "dataset")
    report = import_dataset(published.config(shard_rows=3), out, settings)
    assert (report.counts["image"].kept, report.counts["music"].kept) == (5, 12)
    dataset = Dataset.open(out)
    assert [shard.name for shard in dataset.shards] == sorted(shard.name for shard in dataset.shards)
    assert check_dataset(out).ok
    embed_dataset(out, "tiny", settings=settings)
    features = load_features(out, "tiny")
    assert {modality: len(rows) for modality, rows in features.items()} == {"image": 5, "music": 12, "caption": 9}

    # Files that are not part of the dataset are not read, whatever they contain.
    (tmp_path / "dataset/shards/image-00000-0123456789abcdef.parquet").write_bytes(b"no Parquet")
    rows = dataset.to_ray().take_all()
    assert sorted(row["id"] for row in rows) == sorted(dataset.labels()["id"].to_pylist())
    (row,) = [row for row in rows if row["id"] == "1001"]
    assert row["media"] == (published.media / "images" / "1001.JPG").read_bytes()
    found = EmbeddingSet.open(out, "tiny", "image").to_ray().take_all()
    expected = dict(zip(features["image"].ids.tolist(), features["image"].emb_ND, strict=True))
    assert {row["id"] for row in found} == set(expected)
    for row in found:
        assert np.array_equal(np.asarray(row["embedding"], np.float32), expected[row["id"]])


_RUN = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from mmva.errors import OperationFailed, UsageError
from mmva_platform.annotation import annotate
from mmva_platform.cluster import ray_session
from mmva_platform.datasets.embedding.run import embed_dataset
from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
from mmva_platform.settings import Settings

folder, settings, poison, clean, bundle = sys.argv[1:]
settings = Settings.model_validate_json(settings)
poison, clean = (ImportConfig.model_validate_json(config) for config in (poison, clean))

def import_clean(seed):
    try:
        return import_dataset(clean.model_copy(update={"seed": seed}), f"{folder}/twice", settings).to_json()
    except UsageError as error:
        return str(error)

with ray_session(settings.cluster):
    found = {"import": import_dataset(poison, f"{folder}/imported", settings).to_json()}
    try:
        embed_dataset(f"{folder}/embedded", "tiny", None, settings)
    except OperationFailed as error:
        found["embed"] = str(error)
    with ThreadPoolExecutor(2) as pool:
        found["twice"] = list(pool.map(import_clean, [1, 2]))
    options = {"workers": 1, "shard_items": 5, "engine": "torch"}
    found["annotate"] = annotate(f"{folder}/catalog", bundle, f"{folder}/annotated", settings, **options).to_json()
print(json.dumps(found))
"""


def make_catalog(folder: Path) -> None:
    """Six pictures, of which one kills and one hangs, a file that is none, and a text."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate([(80, 64), (80, 64), KILLS, HANGS, (80, 64), (80, 64)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    (folder / "6.png").write_bytes(b"no picture")
    (folder / "words.txt").write_text("A calm piece for solo piano.")


@pytest.fixture(scope="module")
def run(make_published: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """On one real cluster: an import of files that kill and hang, an embedding of one, two imports at once, and an
    annotation of such files.
    """
    folder = tmp_path_factory.mktemp("workers")
    make_catalog(folder / "catalog")
    (folder / "clean").mkdir()
    clean = make_published(folder / "clean").config(music_csv=None)
    published = make_published(folder)
    poison = published.config(shard_rows=4, music_csv=None)
    for name, size in (("1000", KILLS_ONCE), ("1002", KILLS), ("1009", HANGS)):
        pixels = np.random.default_rng(int(name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(published.media / "images" / f"{name}.jpg", format="JPEG")
    with pytest.MonkeyPatch.context() as patch:
        install(patch)  # the decoder of this process is not broken
        import_dataset(poison, str(folder / "embedded"))
    settings = Settings.model_validate(
        {"home": folder / "home", "cluster": {"num_cpus": 2, "max_attempts": 1}, "annotation": {"item_timeout_s": 3.0}}
    )
    environment = os.environ | {"PYTHONPATH": poison_path(folder / "broken")}
    arguments = [str(folder), *(config.model_dump_json() for config in (settings, poison, clean)), str(tiny_bundle)]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {"folder": folder, "log": done.stderr, **json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.slow
class TestWorkersThatDie:
    def test_an_import_loses_only_the_files_that_kill_or_hang(self, run: dict[str, Any]) -> None:
        """Another file killed its worker once, as a lack of memory would: nothing of its shard is lost."""
        counts = run["import"]["counts"]
        assert counts["image"]["dropped"]["killed-worker"] == counts["image"]["dropped"]["timed-out"] == 1
        assert counts["image"]["kept"] == 3
        assert (run["folder"] / "broken" / "killed-once").exists()
        assert "1000" in Dataset.open(str(run["folder"] / "imported")).labels()["id"].to_pylist()
        assert check_dataset(str(run["folder"] / "imported")).ok

    def test_an_embedding_ends_and_names_the_item(self, run: dict[str, Any]) -> None:
        """Whichever of the two comes first."""
        named = [
            ("image '1002' in shards/image-0000", "killed-worker"),
            ("image '1009' in shards/image-0000", "timed-out"),
        ]
        assert any(item in run["embed"] and cause in run["embed"] for item, cause in named)

    def test_of_two_imports_at_once_one_is_published(self, run: dict[str, Any]) -> None:
        lost = [result for result in run["twice"] if isinstance(result, str)]
        (won,) = [result for result in run["twice"] if not isinstance(result, str)]
        assert len(lost) == 1
        assert "another import finished there first; choose another --out" in lost[0]
        report = check_dataset(str(run["folder"] / "twice"))
        assert (report.ok, report.digest) == (True, won["digest"])
        assert won["counts"]["image"]["kept"] == 5

    def test_an_annotation_quarantines_only_what_kills_or_hangs(self, run: dict[str, Any]) -> None:
        summary, out = run["annotate"], str(run["folder"] / "annotated")
        assert (summary["items"], summary["ok"], summary["quarantined"]) == (8, 5, 3)
        made = open_annotation(out)
        refused = made.table(status="quarantined").to_pylist()
        assert {row["id"]: (row["stage"], row["error"]) for row in refused} == {
            "2.png": ("decode", "killed-worker"),
            "3.png": ("decode", "timed-out"),
            "6.png": ("decode", "not-an-image"),
        }
        assert sorted(made.table(["id"])["id"].to_pylist()) == ["0.png", "1.png", "4.png", "5.png", "words.txt"]
        assert verify(out, Settings(home=run["folder"] / "home")).problems == ()

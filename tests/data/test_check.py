"""What mmva data check finds, in one process and on a cluster."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from inline_pass import InlineCluster

from mmva.errors import EnvironmentFault, UsageError
from mmva.files import sha256_hex
from mmva_platform.datasets import checking
from mmva_platform.datasets.checking import check_dataset
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.importing.run import import_dataset
from mmva_platform.datasets.schema import DATASET_SCHEMA, dataset_digest, parquet_bytes


@pytest.fixture
def out(published: Any, tmp_path: Path, inline_cluster: InlineCluster) -> Path:
    """A dataset in five shards."""
    import_dataset(published.config(shard_rows=4), str(tmp_path / "dataset"))
    inline_cluster.stages.clear()
    return tmp_path / "dataset"


@pytest.fixture(params=["in this process", "on a cluster"], autouse=True)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(checking, "CLUSTER_FROM", 1 if request.param == "on a cluster" else 1_000)
    return str(request.param)


def shard_files(out: Path, modality: str) -> list[Path]:
    return [out / shard.name for shard in Dataset.open(str(out)).shards if shard.modality == modality]


def test_a_fresh_dataset_is_ok(out: Path, inline_cluster: InlineCluster, place: str) -> None:
    report = check_dataset(str(out))
    assert (report.ok, report.rows, report.problems, report.warnings) == (True, 17, [], ())
    assert inline_cluster.stages == (["check"] if place == "on a cluster" else [])


def test_a_changed_and_a_missing_shard_are_found(out: Path) -> None:
    first, second, _ = shard_files(out, "music")
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    second.unlink()
    problems = "\n".join(check_dataset(str(out)).problems)
    assert f"shards/{first.name}: sha256 is" in problems
    assert f"shards/{second.name}: missing" in problems
    assert "music: rows by split are" in problems


def test_a_rewritten_description_does_not_hide_wrong_rows(out: Path) -> None:
    path, _ = shard_files(out, "image")
    rows = pq.read_table(path).to_pylist()
    rows[0]["valence"], rows[1]["id"], rows[2]["media"] = float("nan"), rows[2]["id"], b"other"
    data = parquet_bytes(pq.read_table(path).from_pylist(rows, schema=DATASET_SCHEMA))
    path.write_bytes(data)
    info = json.loads((out / "dataset.json").read_text())
    info["shards"][0]["sha256"] = sha256_hex(data)
    info["digest"] = dataset_digest(shard["sha256"] for shard in info["shards"])
    (out / "dataset.json").write_text(json.dumps(info))
    problems = "\n".join(check_dataset(str(out)).problems)
    assert "1 ids occur twice" in problems
    assert "1 labels are not in [0, 1]" in problems
    assert "do not have its sha256" in problems
    assert f"{info['labels_file']}: its rows are not those of the shards" in problems


def test_a_file_that_is_not_part_of_the_dataset_is_a_warning(out: Path) -> None:
    shutil.copyfile(shard_files(out, "image")[0], out / "shards/image-00009-0123456789abcdef.parquet")
    report = check_dataset(str(out))
    assert report.ok
    assert report.warnings == (
        "1 files such as shards/image-00009-0123456789abcdef.parquet are not part of the dataset; they may be deleted",
    )


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mmva data import"):
        check_dataset(str(tmp_path))


def test_a_worker_that_does_not_see_the_dataset_says_so(
    out: Path, inline_cluster: InlineCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that all shards are missing: the dataset may be on a disk of the driver's node only."""
    monkeypatch.setattr(checking, "CLUSTER_FROM", 1)
    inline_cluster.before_shard = lambda _name: shutil.rmtree(out, ignore_errors=True)
    with pytest.raises(EnvironmentFault, match="is missing on this worker; every node must see it"):
        check_dataset(str(out))

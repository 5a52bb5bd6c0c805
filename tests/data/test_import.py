"""What an import keeps, drops and says, on a tiny published layout with one of every defect."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from mmva.errors import UsageError
from mmva.imemnet.splits import split_by_group
from mmva_platform.datasets.checking import check_dataset
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.importing import run as importing
from mmva_platform.datasets.importing.report import ImportReport
from mmva_platform.datasets.importing.run import import_dataset
from mmva_platform.datasets.schema import DATASET_SCHEMA
from mmva_platform.storage import StorageUnavailable
from mmva_platform.storage.local import LocalStorage

pytestmark = pytest.mark.usefixtures("inline_cluster")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def test_rows_are_kept_or_dropped_for_a_cause(published: Any, out: Path) -> None:
    report = import_dataset(published.config(), str(out))
    images, music = report.counts["image"], report.counts["music"]
    assert (images.rows, images.kept) == (12, 5)
    assert images.dropped == {
        "ambiguous-id": 2,
        "contradicting-duplicate": 2,
        "corrupt-image": 1,
        "duplicate-content": 1,
        "missing-file": 1,
    }
    assert (music.rows, music.kept, music.dropped, music.captions_missing) == (12, 12, {}, 3)
    assert {p.id for p in report.problems if p.code == "label-over-by-a-hair"} == {"1009"}
    written = json.loads((out / Dataset.open(str(out)).info.report_file).read_text())
    assert written | {"out": str(out)} == json.loads(json.dumps(report.to_json()))
    text = report.to_text()
    assert "IMEMNet-C, image: 12 rows = 5 kept" in text
    assert "corrupt-image: 1 (1 rows dropped), such as '1004'" in text


def test_shards_hold_the_files_and_their_labels(published: Any, out: Path) -> None:
    report = import_dataset(published.config(shard_rows=2), str(out))
    dataset = Dataset.open(str(out))
    images = [shard for shard in dataset.shards if shard.modality == "image"]
    assert [(shard.name.rsplit("-", 1)[0], shard.rows) for shard in images] == [
        ("shards/image-00000", 2),
        ("shards/image-00001", 2),
        ("shards/image-00004", 1),  # of 00002 and 00003 no row is left
    ]
    assert all(shard.name.endswith(f"-{shard.sha256[:16]}.parquet") for shard in dataset.shards)
    shard = dataset.read_shard(images[0].name)
    assert shard.schema.equals(DATASET_SCHEMA)
    second = shard.to_pylist()[1]
    assert second.pop("media") == (published.media / "images" / "1001.JPG").read_bytes()
    assert second.pop("sha256")
    assert second.pop("split") in {"train", "val", "test"}
    assert second == {
        "id": "1001",
        "source": "IAPS",
        "modality": "image",
        "group": "1001",
        "valence": 0.2,
        "arousal": 0.8,
        "valence_sd": None,
        "arousal_sd": None,
        "caption": "",
        "media_format": "jpeg",
    }
    assert dataset.labels().num_rows == sum(shard.rows for shard in dataset.shards) == 17
    assert dataset.info.counts == report.splits
    assert sum(dataset.info.counts["caption"].values()) == 9


def test_songs_are_not_cut_by_default(published: Any, out: Path) -> None:
    import_dataset(published.config(), str(out))
    labels = Dataset.open(str(out)).labels().to_pandas()
    music = labels[labels["modality"] == "music"]
    assert set(music.groupby("group")["split"].nunique()) == {1}
    assert set(music["split"]) == {"train", "val", "test"}


def test_a_split_by_clip_is_only_made_when_asked_for_and_says_that_it_leaks(published: Any, out: Path) -> None:
    report = import_dataset(published.config(split="clip", seed=1), str(out))
    dataset = Dataset.open(str(out))
    assert "split by clip" in report.to_text()
    assert dataset.warnings == report.warnings != ()
    assert check_dataset(str(out)).ok


def test_a_split_file_names_the_songs(published: Any, out: Path, tmp_path: Path) -> None:
    path = tmp_path / "song_split.csv"
    path.write_text("song_id,split\n2,test\n3,train\n4,val\n5,train\n")
    import_dataset(published.config(split=str(path)), str(out))
    labels = Dataset.open(str(out)).labels().to_pandas()
    music = labels[labels["modality"] == "music"]
    assert dict(zip(music["group"], music["split"], strict=True)) == {
        "2": "test",
        "3": "train",
        "4": "val",
        "5": "train",
    }
    assert set(labels[labels["modality"] == "image"]["split"]) == {"train", "val", "test"}


def test_the_same_input_gives_the_same_bytes(published: Any, out: Path, tmp_path: Path) -> None:
    import_dataset(published.config(shard_rows=3), str(out))
    again = tmp_path / "again"
    import_dataset(published.config(shard_rows=3), str(again))
    names = sorted(path.relative_to(out) for path in out.rglob("*.*"))
    assert names == sorted(path.relative_to(again) for path in again.rglob("*.*"))
    assert [(out / name).read_bytes() for name in names] == [(again / name).read_bytes() for name in names]


def test_a_dataset_is_never_overwritten(published: Any, out: Path) -> None:
    import_dataset(published.config(), str(out))
    before = (out / "dataset.json").read_bytes()
    with pytest.raises(UsageError, match="holds a dataset already"):
        import_dataset(published.config(seed=7), str(out))
    assert (out / "dataset.json").read_bytes() == before


def test_an_interrupted_import_is_no_dataset_and_can_be_repeated(
    published: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> ImportReport:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(importing, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            import_dataset(published.config(), str(out))
    before = {path.name for path in (out / "shards").iterdir()}
    assert before
    with pytest.raises(UsageError, match="no dataset there"):
        Dataset.open(str(out))
    import_dataset(published.config(), str(out))
    report = check_dataset(str(out))
    assert (report.ok, report.warnings) == (True, ())
    assert {path.name for path in (out / "shards").iterdir()} < before, "the superseded shards are gone"


def test_each_file_is_read_once_and_a_shard_that_lost_rows_is_as_if_they_had_never_been_there(
    published: Any, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    real = LocalStorage.read

    def counting(self: LocalStorage, path: str, most: int | None = None) -> bytes:
        read[f"{self.uri}/{path}"] += 1
        return real(self, path, most)

    monkeypatch.setattr(LocalStorage, "read", counting)
    import_dataset(published.config(), str(out))
    files = [str(path) for path in published.media.rglob("*.*")]
    assert {path: read[path] for path in files} == dict.fromkeys(files, 1)
    shards = {path: count for path, count in read.items() if path.startswith(f"{out}/shards/")}
    assert [(path.count("image-00000"), count) for path, count in shards.items()] == [(1, 1)], "amended from itself"

    for name in ("1004", "1006", "1007", "1008"):
        (published.media / "images" / f"{name}.jpg").unlink()
    clean = tmp_path / "clean"
    import_dataset(published.config(), str(clean))
    assert [shard.name for shard in Dataset.open(str(clean)).shards] == [
        shard.name for shard in Dataset.open(str(out)).shards
    ]


def test_files_behind_a_network_are_read_ahead(published: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_at_once = Barrier(2, timeout=20)
    real = LocalStorage.read

    def remote(self: LocalStorage, path: str, most: int | None = None) -> bytes:
        if path.startswith("audio/"):
            two_at_once.wait()  # broken unless another file of the twelve is asked for meanwhile
        return real(self, path, most)

    monkeypatch.setattr(LocalStorage, "read", remote)
    monkeypatch.setattr(LocalStorage, "local_path", lambda *_: None)
    assert import_dataset(published.config(), str(out)).counts["music"].kept == 12


def test_an_outage_of_storage_repeats_one_file_and_not_the_shard(
    published: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    real = LocalStorage.read

    def remote(self: LocalStorage, path: str, most: int | None = None) -> bytes:
        read[path] += 1
        if path == "audio/4-2.wav" and read[path] == 1:
            raise StorageUnavailable("no answer")
        return real(self, path, most)

    monkeypatch.setattr(LocalStorage, "read", remote)
    monkeypatch.setattr(LocalStorage, "local_path", lambda *_: None)
    assert import_dataset(published.config(), str(out)).counts["music"].kept == 12
    audio = {path: count for path, count in read.items() if path.startswith("audio/")}
    assert audio == dict.fromkeys(audio, 1) | {"audio/4-2.wav": 2}


def test_a_split_that_dropped_items_move_is_the_one_of_the_rows_that_are_left(published: Any, out: Path) -> None:
    for clip in published.media.glob("audio/5-*.wav"):
        clip.write_bytes(b"RIFF nonsense")
    import_dataset(published.config(shard_rows=3, fractions=(0.34, 0.33, 0.33)), str(out))
    labels = Dataset.open(str(out)).labels().to_pandas()
    songs = labels[labels["modality"] == "music"].groupby("group")["split"].first()
    assert dict(songs) == dict(zip(songs.index, split_by_group(list(songs.index), 0, (0.34, 0.33, 0.33)), strict=True))
    assert check_dataset(str(out)).ok


def test_nothing_usable_says_why_and_leaves_the_report(published: Any, out: Path) -> None:
    for path in (published.media / "audio").iterdir():
        path.write_bytes(b"RIFF nonsense")
    with pytest.raises(UsageError, match=r"no usable music items of IMEMNet-C are left \(\S+ 12\)") as error:
        import_dataset(published.config(), str(out))
    report = json.loads(Path(str(error.value).split("; see ")[1]).read_text())
    assert report["counts"]["music"]["kept"] == 0
    assert not (out / "dataset.json").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images_csv": "/none/image_va.csv"}, r"/none/image_va\.csv: no such file"),
        ({"media": "/none"}, "/none: no files there"),
        ({"images_csv": None, "music_csv": None}, r"no image_va\.csv or music_va\.csv there"),
        ({"split": "/none/split.csv"}, r"/none/split\.csv: no such file"),
    ],
)
def test_a_mistake_is_one_line(published: Any, out: Path, changes: dict[str, Any], said: str) -> None:
    config = published.config(**changes)
    with pytest.raises(UsageError, match=said) as error:
        import_dataset(config, str(out))
    assert "\n" not in str(error.value)
    assert not out.exists()

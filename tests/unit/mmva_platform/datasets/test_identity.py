"""What a model was trained on is found again under other ids, by content and by group; and a split that leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmva.modalities import MODALITIES
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.identity import Seen, seen_rows, shared_groups, training_record

from ...helpers.embedded_dataset import label_rows, make_dataset, picture, publish, row_of, tone


def sentence(i: int, text: str, split: str, source: str = "letters") -> dict[str, Any]:
    return row_of("caption", i, (0.5, 0.5), source=source, split=split, group=f"document-{i}") | {"caption": text}


def opened(folder: Path, rows: list[dict[str, Any]], media: list[bytes]) -> Dataset:
    publish(folder, rows, media)
    return Dataset.open(str(folder))


def test_the_own_test_split_is_unseen_and_the_training_split_is_seen(tmp_path: Path) -> None:
    dataset = Dataset.open(str(make_dataset(tmp_path / "data")))
    record = json.loads(json.dumps(training_record(dataset, MODALITIES)))
    assert shared_groups(dataset) == record["shared_groups"] == 0
    for modality, test in (("image", 10), ("music", 14), ("caption", 7)):
        assert seen_rows(record, dataset, modality, "test") == Seen(test, 0, 0)  # type: ignore[arg-type]
        train = seen_rows(record, dataset, modality, "train")  # type: ignore[arg-type]
        assert train.certain == train.rows > 0


def test_the_same_media_under_other_ids_groups_and_sources_are_found(tmp_path: Path) -> None:
    trained = Dataset.open(str(make_dataset(tmp_path / "data")))
    known = next(i for i, row in enumerate(label_rows()) if row["split"] == "train")
    rows = [row_of("image", 900 + i, (0.1, 0.2), source="other", split="test", group=f"g{i}") for i in range(3)]
    exam = opened(tmp_path / "exam", rows, [picture(8 * known), picture(255), picture(254)])
    record = training_record(trained, ["image"])
    assert seen_rows(record, exam, "image", "test") == Seen(3, 1, 0)
    assert seen_rows(training_record(trained, ["music"]), exam, "image", "test") == Seen(3, 0, 0)


def test_another_clip_of_a_song_that_was_trained_on_is_found_by_source_and_group(tmp_path: Path) -> None:
    trained = Dataset.open(str(make_dataset(tmp_path / "data")))
    song = next(row for row in label_rows() if row["modality"] == "music" and row["split"] == "train")
    rows = [
        row_of("music", i, (0.1, 0.2), source=source, split="test", group=song["group"])
        for i, source in ((0, song["source"]), (1, "another collection"))
    ]
    exam = opened(tmp_path / "exam", rows, [tone(0.91), tone(0.92)])
    assert seen_rows(training_record(trained, ["music"]), exam, "music", "test") == Seen(2, 1, 0)


def test_validation_counts_as_training_and_test_does_not(tmp_path: Path) -> None:
    rows = [
        row_of("image", i, (0.1, 0.2), source="a", split=s, group=s) for i, s in enumerate(("train", "val", "test"))
    ]
    dataset = opened(tmp_path / "data", rows, [picture(i) for i in range(3)])
    record = training_record(dataset, ["image"])
    assert [seen_rows(record, dataset, "image", split).certain for split in ("train", "val", "test")] == [1, 1, 0]


def test_a_sentence_is_known_by_its_words_and_a_clips_caption_by_its_clip(tmp_path: Path) -> None:
    trained = [
        sentence(0, "A  letter\nto the READERS", "train"),
        row_of("music", 1, (0.5, 0.5), source="a", split="train", group="s") | {"caption": "calm piano"},
    ]
    record = training_record(opened(tmp_path / "data", trained, [b"", tone(0.5)]), ["music", "caption"])
    rows = [
        sentence(7, "a letter to the readers", "test", "other"),
        sentence(8, "calm piano", "test", "other"),
        row_of("music", 2, (0.5, 0.5), source="b", split="test", group="t") | {"caption": "calm piano"},
        row_of("music", 3, (0.5, 0.5), source="b", split="test", group="u") | {"caption": "other words"},
    ]
    exam = opened(tmp_path / "exam", rows, [b"", b"", tone(0.7), tone(0.5)])
    assert seen_rows(record, exam, "caption", "test") == Seen(4, 1, 1)
    assert seen_rows(record, exam, "music", "test") == Seen(2, 1, 0)


def test_groups_in_two_splits_are_counted_by_source_and_modality(tmp_path: Path) -> None:
    places = [("image", "a", "train"), ("image", "a", "test"), ("image", "b", "val"), ("music", "a", "val")]
    rows = [row_of(kind, i, (0.1, 0.2), source=s, split=split, group="g") for i, (kind, s, split) in enumerate(places)]
    assert shared_groups(opened(tmp_path / "data", rows, [np.uint8(i).tobytes() for i in range(4)])) == 1


def test_a_record_is_small(tmp_path: Path) -> None:
    """Two digests of 8 bytes a row, in base64: 12,000 rows of the starter stay under half a megabyte."""
    rows = [row_of("image", i, (0.1, 0.2), source="a", split="train", group=f"g{i}") for i in range(300)]
    dataset = opened(tmp_path / "data", rows, [i.to_bytes(2, "big") for i in range(300)])
    assert len(json.dumps(training_record(dataset, ["image"]))) < 300 * 22 + 300

"""Tables of one's own: what is kept, dropped and said, the splits by group, and what comes out of the dataset."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mmva.data.labels import PROBLEM_CODES
from mmva.data.splits import leaking_groups
from mmva.errors import UsageError
from mmva.files import sha256_hex
from mmva.media.audio.decode import decode_audio
from mmva_platform.datasets.checking import check_dataset
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.embedding.run import embed_dataset
from mmva_platform.datasets.features import load_features
from mmva_platform.datasets.importing.run import import_dataset
from mmva_platform.datasets.sources.reading import read_source
from mmva_platform.settings import StorageSettings

from .source_world import config_of, imported, picture, sound, table

pytestmark = pytest.mark.usefixtures("inline_cluster")
HEADER = "file,valence,arousal,theme,sd"


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Any]:
    """A source of twelve pictures of six themes, rated from 1 to 5."""
    rows = [(f"p{n}.png", 1 + 4 * n / 11, 5 - 4 * (n % 4) / 3, f"theme {n // 2}", 0.4) for n in range(12)]
    for name, *_ in rows:
        picture(tmp_path / "pictures" / "files" / name)
    table(tmp_path / "pictures" / "ratings.csv", HEADER, rows)
    return {
        "name": "Ours", "license": "CC0", "root": str(tmp_path / "pictures"), "modality": "image", "media": "files",
        "table": "ratings.csv", "columns": {"file": "file", "group": "theme", "valence_sd": "sd"}, "scale": [1, 5],
    }  # fmt: skip


def add(source: dict[str, Any], *rows: str) -> None:
    path = Path(source["root"]) / source["table"]
    path.write_text(path.read_text() + "".join(f"{row}\n" for row in rows))


def test_ratings_become_points_and_keep_their_source_deviation_and_group(
    pictures: dict[str, Any], tmp_path: Path
) -> None:
    report, rows = imported(tmp_path / "out", pictures)
    assert (report.counts["image"].kept, report.counts["image"].dropped) == (12, {})
    row = next(row for row in rows if row["id"] == "Ours/p11")
    assert (row["valence"], row["arousal"]) == (1.0, 0.0)
    assert row["valence_sd"] == pytest.approx(0.1)
    assert row["arousal_sd"] is None
    assert (row["source"], row["group"]) == ("Ours", "Ours/theme 5")
    dataset = Dataset.open(str(tmp_path / "out"))
    assert dataset.info.terms == {"Ours": "CC0"}
    assert dataset.info.sources == {"image": {"Ours": 12}}
    assert dataset.info.split.policy == "group"
    assert leaking_groups([row["group"] for row in rows], [row["split"] for row in rows]) == []
    assert check_dataset(str(tmp_path / "out")).ok


def test_each_defect_is_listed_and_the_counts_add_up(pictures: dict[str, Any], tmp_path: Path) -> None:
    files = Path(pictures["root"]) / "files"
    picture(files / "broken.png")
    (files / "broken.png").write_bytes((files / "broken.png").read_bytes()[:100])
    for name in ("comma.png", "high.png", "hair.png", "text.png", "ragged.png", "sd.png"):
        picture(files / name)
    add(
        pictures,
        "broken.png,3,3,t,0.1",
        "missing.png,3,3,t,0.1",
        'comma.png,"2,5",3,t,0.1',
        "high.png,5.2,3,t,0.1",
        "hair.png,5.02,3,t,0.1",
        "text.png,3,,t,0.1",
        "ragged.png,2,5,3,1,t,0.1",
        "sd.png,3,3,t,-1",
        ",3,3,t,0.1",
    )
    report, rows = imported(tmp_path / "out", pictures)
    images = report.counts["image"]
    assert images.dropped == {
        "corrupt-image": 1,
        "label-not-a-number": 2,
        "label-out-of-range": 1,
        "missing-file": 1,
        "missing-id": 1,
        "ragged-row": 1,
    }
    assert images.rows == images.kept + sum(images.dropped.values()) == 21
    assert len(rows) == images.kept == 14
    assert {problem.code for problem in report.problems if not problem.dropped} == {
        "label-over-by-a-hair",
        "unusable-sd",
    }
    text = report.to_text()
    assert "'Ours/comma': valence '2,5' is not a number; write a decimal point" in text
    assert "'Ours/high': valence 5.2 of 1 to 5" in text
    assert "'Ours/missing': no file missing.png" in text
    written = json.loads((tmp_path / "out" / Dataset.open(str(tmp_path / "out")).info.report_file).read_text())
    assert {problem["source"] for problem in written["problems"]} == {"Ours"}
    assert next(row for row in rows if row["id"] == "Ours/sd")["valence_sd"] is None


def test_a_scale_that_no_label_reaches_is_said(pictures: dict[str, Any], tmp_path: Path) -> None:
    report, _ = imported(tmp_path / "out", {**pictures, "scale": {"valence": [1, 9.5], "arousal": [1, 5]}})
    (problem,) = report.problems
    assert (problem.code, problem.id, problem.dropped) == ("scale-not-reached", "Ours/valence", 0)
    assert problem.detail == "all labels lie in 1 to 5, the scale is 1 to 9.5; is it theirs?"


def test_given_splits_are_kept_and_a_group_in_two_of_them_is_dropped(pictures: dict[str, Any], tmp_path: Path) -> None:
    path = Path(pictures["root"]) / "ratings.csv"
    names = ["train", "Train", "dev", "val", "test", "test", "train", "train", "train", "TEST", "holdout", ""]
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"{line},{name}" for line, name in zip(lines, ["split", *names], strict=True)) + "\n")
    pictures["columns"]["split"] = "split"
    report, rows = imported(tmp_path / "out", pictures)
    assert report.counts["image"].dropped == {"group-in-two-splits": 2, "unknown-split": 2}
    (torn,) = [problem for problem in report.problems if problem.code == "group-in-two-splits"]
    assert (torn.id, torn.detail) == ("Ours/theme 4", "2 rows in test, train")
    assert {row["group"]: row["split"] for row in rows} == {
        "Ours/theme 0": "train",
        "Ours/theme 1": "val",
        "Ours/theme 2": "test",
        "Ours/theme 3": "train",
    }
    assert Dataset.open(str(tmp_path / "out")).info.split.policy == "given"


def test_sources_are_told_apart_and_split_each_on_its_own(pictures: dict[str, Any], tmp_path: Path) -> None:
    """The same names and groups in two sources are different items; each source is in every split."""
    other = tmp_path / "other"
    for n in range(12):
        picture(other / f"p{n}.png", seed=1)
    table(other / "ratings.csv", HEADER, [(f"p{n}.png", n / 11, 1 - n / 11, f"theme {n // 2}", 0.1) for n in range(12)])
    second = {**pictures, "name": "Theirs", "root": str(other), "media": ".", "scale": [0, 1]}
    report, rows = imported(tmp_path / "out", second, pictures)
    again, _ = imported(tmp_path / "again", pictures, second)
    assert again.digest == report.digest, "whatever the order of the sources"
    assert {name: by["image"].kept for name, by in report.sources.items()} == {"Ours": 12, "Theirs": 12}
    assert report.counts["image"].kept == 24
    assert "Ours, image: 12 rows = 12 kept" in report.to_text()
    for source in ("Ours", "Theirs"):
        own = [row for row in rows if row["source"] == source]
        assert {row["split"] for row in own} == {"train", "val", "test"}
        assert all(row["id"].startswith(f"{source}/") and row["group"].startswith(f"{source}/") for row in own)
    assert check_dataset(str(tmp_path / "out")).ok


def test_the_same_picture_with_two_labels_is_in_neither_source(pictures: dict[str, Any], tmp_path: Path) -> None:
    shared = tmp_path / "pictures" / "files" / "p11.png"
    for n in range(3):
        picture(tmp_path / "other" / f"q{n}.png")
    (tmp_path / "other" / "p.png").write_bytes(shared.read_bytes())
    rows = [("q0.png", 1, 1), ("q1.png", 3, 3), ("q2.png", 5, 5), ("p.png", 1, 5)]
    table(tmp_path / "other" / "ratings.csv", "file,valence,arousal", rows)
    other = {**pictures, "name": "Theirs", "root": str(tmp_path / "other"), "media": ".", "columns": {"file": "file"}}
    report, _ = imported(tmp_path / "out", other, pictures)
    assert {name: by["image"].dropped for name, by in report.sources.items()} == {
        "Ours": {"contradicting-duplicate": 1},
        "Theirs": {"contradicting-duplicate": 1},
    }


def test_sizes_are_counted_in_rows(tmp_path: Path) -> None:
    sizes = [10, 9, 8, 6, 5, 4, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1]
    themes = [number for number, size in enumerate(sizes) for _ in range(size)]
    rows = [(f"a sentence with the number {n}", n / 59, 1 - n / 59, themes[n]) for n in range(60)]
    table(tmp_path / "t.csv", "text,valence,arousal,theme", rows)
    source = sentences(tmp_path, columns={"text": "text", "group": "theme"})
    report, _ = imported(tmp_path / "out", source, fractions=(0.6, 0.2, 0.2))
    assert report.splits["caption"]["train"] == pytest.approx(36, abs=2)
    assert report.splits["caption"]["val"] == pytest.approx(12, abs=2)


def test_too_few_groups_say_whose(pictures: dict[str, Any], tmp_path: Path) -> None:
    pictures["columns"]["group"] = "sd"
    with pytest.raises(UsageError, match="Ours: 1 groups are too few for 3 splits; add data"):
        imported(tmp_path / "out", pictures)


cell = st.sampled_from(["", "1", "5", "2,5", "0.9", "nan", "inf", "-1", "x"])
row = st.tuples(st.sampled_from(["", "a", "b ", "c"]), cell, cell, st.sampled_from(["", "g", "h"]), cell, st.booleans())


@hypothesis_settings(max_examples=40)
@given(st.lists(row, max_size=12), st.booleans())
def test_rows_in_are_rows_kept_and_rows_reported(rows: list[tuple[Any, ...]], with_splits: bool) -> None:
    """Whatever the table holds."""
    splits = ("train", "dev", "?")
    lines = ["name,v,a,g,sd,split"]
    lines += [
        f'{n},"{v}","{a}",{g},"{sd}",{splits[k % 3]}{",x" * long}' for k, (n, v, a, g, sd, long) in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "t.csv").write_text("\n".join(lines) + "\n")
        columns = {"id": "name", "valence": "v", "arousal": "a", "group": "g", "valence_sd": "sd"}
        columns |= {"split": "split"} if with_splits else {}
        source = {"name": "S", "root": folder, "modality": "image", "table": "t.csv", "scale": [1, 5]}
        (labels,) = read_source(config_of({**source, "columns": columns}).sources[0], StorageSettings()).labels
    assert labels.rows_in == len(rows) == len(labels.rows) + sum(problem.dropped for problem in labels.problems)
    assert labels.rows["id"].is_unique
    assert {problem.code for problem in labels.problems} <= set(PROBLEM_CODES)
    assert np.isfinite(labels.rows[["valence", "arousal"]].to_numpy(float)).all()
    assert leaking_groups(labels.rows["group"].tolist(), labels.rows["split"].tolist()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": {"file": "picture"}}, r"ratings\.csv: has no column 'picture'; its columns are 'file'"),
        ({"columns": {"file": "file", "group": "thme"}}, r"has no column 'thme'; did you mean 'theme'"),
        ({"table": "rating.csv"}, r"rating\.csv: no such file"),
        ({"media": "nowhere"}, "nowhere: no files there"),
        ({"scale": [10, 20]}, "no usable image items of Ours are left .label-out-of-range 12.; see "),
    ],
)
def test_a_mistake_of_the_source_file_is_one_line(
    pictures: dict[str, Any], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as error:
        import_dataset(config_of({**pictures, **changes}), str(tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "dataset.json").exists()


def sentences(root: Path, **changes: Any) -> dict[str, Any]:
    values = {"name": "Words", "root": str(root), "modality": "caption", "table": "t.csv", "scale": [0, 1]}
    return {**values, "columns": {"text": "text"}, **changes}


class TestSentences:
    """Items of their own, without a clip."""

    @pytest.fixture
    def words(self, tmp_path: Path) -> dict[str, Any]:
        rows = [(f"sentence  number {n}", n / 9, 1 - n / 9) for n in range(10)]
        table(tmp_path / "t.csv", "text,valence,arousal", [*rows, ("  ", 0.5, 0.5), ("sentence number 3", 0.3, 0.7)])
        return sentences(tmp_path)

    def test_they_are_cleaned_and_numbered(self, words: dict[str, Any], tmp_path: Path) -> None:
        report, rows = imported(tmp_path / "out", words)
        assert report.counts["caption"].dropped == {"duplicate-content": 1, "unusable-text": 1}
        first = rows[0]
        assert (first["id"], first["caption"], first["group"]) == ("Words/000001", "sentence number 0", "Words/000001")
        assert (first["modality"], first["media_format"]) == ("caption", "")
        assert sum(report.splits["caption"].values()) == 10
        assert check_dataset(str(tmp_path / "out")).ok

    def test_a_changed_sentence_is_found(self, words: dict[str, Any], tmp_path: Path) -> None:
        from mmva_platform.datasets.checking import check_shard
        from mmva_platform.datasets.schema import DATASET_SCHEMA, parquet_bytes

        imported(tmp_path / "out", words)
        dataset = Dataset.open(str(tmp_path / "out"))
        (shard,) = dataset.shards
        rows = dataset.read_shard(shard.name).to_pylist()
        rows[0]["caption"] = "another sentence"
        data = parquet_bytes(dataset.read_shard(shard.name).from_pylist(rows, schema=DATASET_SCHEMA))
        (tmp_path / "out" / shard.name).write_bytes(data)
        found = check_shard(dataset.storage, shard.model_copy(update={"sha256": sha256_hex(data)}))
        assert "the text of 'Words/000001' do not have its sha256" in found.problems[0]

    def test_a_dataset_of_sentences_alone_is_embedded(self, words: dict[str, Any], tmp_path: Path) -> None:
        imported(tmp_path / "out", words)
        assert set(embed_dataset(str(tmp_path / "out"), "tiny")) == {"caption"}
        features = load_features(str(tmp_path / "out"), "tiny")
        assert set(features) == {"caption"}
        assert len(features["caption"]) == 10
        assert features.terms == {"Words": "see its source"}


class TestMusic:
    """Whole songs in any format, parts of songs, with and without captions."""

    @pytest.fixture
    def songs(self, tmp_path: Path) -> dict[str, Any]:
        rows = []
        for n, suffix in enumerate(("wav", "flac", "ogg", "mp3")):
            sound(tmp_path / "songs" / f"s{n}.{suffix}", seconds=7.0, channels=1 + n % 2, rate=16_000)
            name, words = (f"s{n}", f"tune {n}") if n else ("./s0.wav", "")
            rows.append((name, n / 3, 1 - n / 3, words, 2 * n % 5, 2 * n % 5 + 2))
        table(tmp_path / "t.csv", "song,valence,arousal,words,begin,end", rows)
        return {
            "name": "Songs", "root": str(tmp_path), "modality": "music", "table": "t.csv", "media": "songs",
            "columns": {"file": "song"}, "scale": [0, 1],
        }  # fmt: skip

    def test_any_format_is_found_by_name_and_embedded_by_windows(self, songs: dict[str, Any], tmp_path: Path) -> None:
        report, rows = imported(tmp_path / "out", songs)
        assert report.counts["music"].kept == 4
        assert report.counts["music"].captions_missing == 0, "this source has no captions at all"
        assert [row["id"] for row in rows] == [f"Songs/s{n}" for n in range(4)]
        assert [row["media_format"] for row in rows] == ["wav", "flac", "ogg", "mp3"]
        assert set(embed_dataset(str(tmp_path / "out"), "tiny")) == {"music"}
        assert len(load_features(str(tmp_path / "out"), "tiny")["music"]) == 4

    def test_a_part_of_a_song_is_an_item_of_its_own(self, songs: dict[str, Any], tmp_path: Path) -> None:
        songs["columns"] |= {"start_s": "begin", "end_s": "end", "text": "words"}
        report, _ = imported(tmp_path / "out", songs)
        assert (report.counts["music"].kept, report.counts["music"].captions_missing) == (4, 1)
        dataset = Dataset.open(str(tmp_path / "out"))
        clip = dataset.read_shard(dataset.shards[0].name).to_pylist()[2]
        assert (clip["id"], clip["media_format"], clip["caption"]) == ("Songs/s2@4", "wav", "tune 2")
        samples_T = decode_audio(clip["media"], 16_000)
        song_T = decode_audio((tmp_path / "songs" / "s2.ogg").read_bytes(), 16_000)
        np.testing.assert_allclose(samples_T, song_T[4 * 16_000 : 6 * 16_000], atol=2 / 32_767)

    def test_a_part_behind_the_end_of_its_song_is_dropped(self, songs: dict[str, Any], tmp_path: Path) -> None:
        add(songs, "s1,0.5,0.5,late,6,8", "s1,0.5,0.5,back,3,1", "s1,0.5,0.5,word,x,4", "s1,0.5,0.5,all,,")
        songs["columns"] |= {"start_s": "begin", "end_s": "end"}
        report, rows = imported(tmp_path / "out", songs)
        assert report.counts["music"].dropped == {"too-short": 1, "unusable-part": 2}
        assert [row["id"] for row in rows if "s1" in row["id"]] == ["Songs/s1", "Songs/s1@2"]

    def test_captions_follow_their_clips_over_the_folds_and_sentences_have_their_own(
        self, songs: dict[str, Any], tmp_path: Path
    ) -> None:
        songs["columns"]["text"] = "words"
        table(tmp_path / "w" / "t.csv", "text,valence,arousal", [(f"line {n}", n / 19, 1 - n / 19) for n in range(20)])
        imported(tmp_path / "out", songs, sentences(tmp_path / "w"))
        embed_dataset(str(tmp_path / "out"), "tiny")
        features = load_features(str(tmp_path / "out"), "tiny")
        tested: list[str] = []
        for fold in features.folds(2):
            split_of = dict(zip(fold["music"].ids.tolist(), fold["music"].split.tolist(), strict=True))
            caption_split_of = dict(zip(fold["caption"].ids.tolist(), fold["caption"].split.tolist(), strict=True))
            assert all(caption_split_of.get(item, split) == split for item, split in split_of.items())
            assert list(split_of.values()).count("test") == 2, "as many songs, whatever the number of sentences"
            of_words = [split for item, split in caption_split_of.items() if item.startswith("Words/")]
            assert of_words.count("test") == 10
            tested += [item for item, split in (*split_of.items(), *caption_split_of.items()) if split == "test"]
        assert sorted(tested) == sorted([*features["music"].ids.tolist(), *features["caption"].ids.tolist()])


def test_a_dataset_of_an_older_version_says_to_import_again(pictures: dict[str, Any], tmp_path: Path) -> None:
    imported(tmp_path / "out", pictures)
    path = tmp_path / "out" / "dataset.json"
    path.write_text(json.dumps({"schema_version": 1, "digest": "d"}))
    with pytest.raises(UsageError, match=r"schema version 1, this mmva reads version 2; import its sources again") as e:
        Dataset.open(str(tmp_path / "out"))
    assert "\n" not in str(e.value)

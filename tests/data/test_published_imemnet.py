"""The real label files of IMEMNet-C, skipped by name where IMEMNET_DIR does not name them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmva.data.labels import Labels
from mmva.data.splits import leaking_groups
from mmva.imemnet.published import read_image_labels, read_music_labels
from mmva.imemnet.splits import read_split_file, split_by_file, split_by_group


@pytest.fixture(scope="module")
def images(imemnet_dir: Path) -> Labels:
    return read_image_labels(imemnet_dir / "image_va.csv")


@pytest.fixture(scope="module")
def music(imemnet_dir: Path) -> Labels:
    return read_music_labels(imemnet_dir / "music_va_known.csv", require_captions=False)


def test_image_rows_add_up_and_the_lost_suffixes_are_reported(images: Labels) -> None:
    assert images.rows_in == 24_758
    assert images.counts == {"ambiguous-id": 8}
    assert images.rows_dropped == 22
    assert len(images.rows) == 24_744 - 8
    assert {problem.id for problem in images.problems} == {
        "2345",
        "2352",
        "2745",
        "2900",
        "3550",
        "4664",
        "6250",
        "6570",
    }
    assert images.rows["source"].value_counts().to_dict() == {"EMOTIC": 23_074, "IAPS": 1_152, "NAPS": 510}


def test_labels_are_read_to_the_last_digit(images: Labels) -> None:
    row = images.rows.set_index("id").loc["3053"]
    assert (row["valence"], row["arousal"]) == (0.0, 0.921847246891652)


def test_music_labels_and_the_one_above_one_by_a_hair(music: Labels) -> None:
    assert (music.rows_in, len(music.rows)) == (9_144, 9_144)
    assert [(problem.code, problem.id) for problem in music.problems] == [("label-over-by-a-hair", "115-14")]
    assert music.rows["arousal"].max() == pytest.approx(1.005824)
    assert set(music.rows["source"]) == {"DEAM"}


def test_neighbouring_clips_of_a_song_are_nearly_the_same(music: Labels) -> None:
    """The leak that a split by clip opens: an MSE of .00015 between neighbours."""
    clips = music.rows.assign(k=[int(i.rsplit("-", 1)[1]) for i in music.rows["id"]]).set_index(["group", "k"])
    va = clips[["valence", "arousal"]]
    behind = va.rename(index=lambda k: k - 1, level="k")
    squared = ((va - behind).dropna() ** 2).to_numpy()
    assert len(squared) > 5_000
    assert squared.mean() == pytest.approx(0.00015, rel=0.35)


def test_published_split_is_by_song_and_has_its_shares(music: Labels, imemnet_dir: Path) -> None:
    split_of = read_split_file(imemnet_dir / "song_split.csv")
    assert Counter(split_of.values()) == {"train": 1_442, "val": 90, "test": 270}
    splits = split_by_file(music.rows["group"].tolist(), split_of)
    assert set(splits) == {"train", "val"}  # the labels known here have no song of the test split
    assert leaking_groups(music.rows["group"].tolist(), splits.tolist()) == []


def test_our_own_split_has_the_published_shares(images: Labels) -> None:
    groups = images.rows["group"].tolist()
    names, counts = np.unique(split_by_group(groups, seed=0), return_counts=True)
    shares = dict(zip(names.tolist(), (counts / len(groups)).tolist(), strict=True))
    assert shares == pytest.approx({"train": 0.8, "val": 0.05, "test": 0.15}, abs=1e-3)

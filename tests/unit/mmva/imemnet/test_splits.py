from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmva.data.splits import leaking_groups
from mmva.errors import UsageError
from mmva.imemnet.splits import (
    read_split_file,
    split_by_file,
    split_by_group,
)

groups_of_items = st.lists(st.integers(0, 40).map(str), min_size=1, max_size=200).filter(lambda g: len(set(g)) >= 3)


@given(groups_of_items, st.integers(-5, 5), st.randoms())
def test_no_group_in_two_splits_and_no_dependence_on_row_order(groups: list[str], seed: int, random) -> None:
    splits = split_by_group(groups, seed)
    assert leaking_groups(groups, splits) == []
    assert set(splits) == {"train", "val", "test"}
    order = list(range(len(groups)))
    random.shuffle(order)
    assert split_by_group([groups[i] for i in order], seed).tolist() == splits[order].tolist()


def test_shares_are_those_of_the_published_split() -> None:
    songs = [str(song) for song in range(1802)]
    assert Counter(split_by_group(songs).tolist()) == {"train": 1442, "val": 90, "test": 270}


def test_seeds_give_different_splits_and_the_same_seed_the_same() -> None:
    songs = [str(song) for song in range(200)]
    assert (split_by_group(songs, 1) == split_by_group(songs, 1)).all()
    assert 20 < (split_by_group(songs, 1) != split_by_group(songs, 2)).sum() < 120


def test_a_known_split_does_not_change_between_versions() -> None:
    """Datasets are compared across releases: this assignment is a promise."""
    expected = ["train", "test", "train", "train", "train", "val", "train", "train"]
    assert split_by_group([str(song) for song in range(8)], 0).tolist() == expected


def test_a_split_by_clip_tears_songs_apart() -> None:
    ids = [f"{song}-{k}" for song in range(20) for k in range(1, 16)]
    songs = [clip.split("-", maxsplit=1)[0] for clip in ids]
    assert len(leaking_groups(songs, split_by_group(ids).tolist())) > 15


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (1.1, -0.1, 0.0), (0.0, 0.5, 0.5)])
def test_fractions_must_be_shares(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError, match="fractions"):
        split_by_group(["a", "b", "c"], 0, fractions)


def test_too_few_groups_is_said_and_none_is_fine() -> None:
    with pytest.raises(UsageError, match="2 groups are too few"):
        split_by_group(["a", "a", "b"])
    assert split_by_group([]).shape == (0,)
    assert set(split_by_group(["a", "a"], 0, (1.0, 0.0, 0.0))) == {"train"}


def test_split_file() -> None:
    split_of = read_split_file(b"song_id,split\n2,train\n007,test\n")
    assert split_of == {"2": "train", "007": "test"}
    assert split_by_file(["007", "2", "2"], split_of).tolist() == ["test", "train", "train"]
    with pytest.raises(UsageError, match="no row for 1 songs, such as '9'"):
        split_by_file(["2", "9"], split_of)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"song,split\n2,train\n", "songs.csv: has no column 'song_id'"),
        (b"song_id,split\n2,dev\n", "songs.csv: column 'split' contains 'dev'"),
        (b"song_id,split\n2,train\n2,test\n", "songs.csv: song '2' is on several rows"),
    ],
)
def test_split_files_that_cannot_be_used(content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_split_file(content, "songs.csv")


def test_result_is_an_array_of_names() -> None:
    assert split_by_group(["a", "b", "c"]).dtype == np.dtype("<U5")

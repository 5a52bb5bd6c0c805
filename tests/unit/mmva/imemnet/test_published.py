from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmva.data.labels import PROBLEM_CODES, match_files
from mmva.errors import UsageError
from mmva.imemnet.published import (
    image_source,
    read_image_labels,
    read_music_labels,
    song_of,
)

IMAGES = b",img,valence,arousal\n0,3053,0.25,0.75\n1,Animals_001_h,1,0\n2,COCO_val2014_000000562243,0.5,0.5\n"
MUSIC = (
    b",Clip ID,Valence,Arousal,Caption\n0,10-1,0.1,0.2,A slow  song\n1,10-2,0.3,0.4,Still slow\n2,007-1,0.5,0.6,Fast\n"
)


def test_images_as_published() -> None:
    labels = read_image_labels(IMAGES)
    assert labels.rows.to_dict("list") == {
        "id": ["3053", "Animals_001_h", "COCO_val2014_000000562243"],
        "source": ["IAPS", "NAPS", "EMOTIC"],
        "group": ["3053", "Animals_001_h", "COCO_val2014_000000562243"],
        "valence": [0.25, 1.0, 0.5],
        "arousal": [0.75, 0.0, 0.5],
        "caption": ["", "", ""],
    }
    assert (labels.modality, labels.rows_in, labels.rows_dropped, labels.problems) == ("image", 3, 0, [])


def test_music_as_published_groups_by_song_and_keeps_ids_as_text() -> None:
    labels = read_music_labels(MUSIC)
    assert labels.rows["id"].tolist() == ["10-1", "10-2", "007-1"]
    assert labels.rows["group"].tolist() == ["10", "10", "007"]
    assert labels.rows["caption"].tolist() == ["A slow song", "Still slow", "Fast"]
    assert labels.rows["valence"].dtype == "float64"


def test_header_of_the_known_subset_is_read_when_captions_are_not_required() -> None:
    subset = b"clip_id,valence,arousal\n2-9,0.486645,0.457577\n"
    assert read_music_labels(subset, require_captions=False).rows["caption"].tolist() == [""]
    with pytest.raises(UsageError, match=r"known\.csv: has no column 'Caption'"):
        read_music_labels(subset, "known.csv")


def test_ids_that_look_like_numbers_stay_as_they_are_written() -> None:
    rows = read_image_labels(b",img,valence,arousal\n0,1050.10,0,0\n1,007,0,0\n2,1e5,0,0\n3,NA,0,0\n").rows
    assert rows["id"].tolist() == ["1050.10", "007", "1e5", "NA"]


def test_ambiguous_ids_lose_all_rows_and_are_reported_once() -> None:
    labels = read_image_labels(IMAGES + b"3,3053,0.9,0.9\n4,3053,0.25,0.75\n")
    assert labels.rows["id"].tolist() == ["Animals_001_h", "COCO_val2014_000000562243"]
    [problem] = labels.problems
    assert (problem.code, problem.id, problem.dropped) == ("ambiguous-id", "3053", 3)


def test_an_id_with_one_good_and_one_bad_label_is_ambiguous_and_not_the_good_one() -> None:
    labels = read_image_labels(b",img,valence,arousal\n0,a,0.5,0.5\n1,a,7,0.5\n")
    assert len(labels.rows) == 0
    assert labels.counts == {"ambiguous-id": 1}


def test_equal_rows_are_kept_once() -> None:
    labels = read_image_labels(IMAGES + b"3,3053,0.25,0.75\n")
    assert len(labels.rows) == 3
    assert labels.counts == {"duplicate-row": 1}


@pytest.mark.parametrize(
    ("valence", "kept", "code"),
    [
        ("0", True, None),
        ("1", True, None),
        ("1.005824", True, "label-over-by-a-hair"),
        ("-0.004", True, "label-over-by-a-hair"),
        ("1.02", False, "label-out-of-range"),
        ("-0.02", False, "label-out-of-range"),
        ("nan", False, "label-not-a-number"),
        ("inf", False, "label-out-of-range"),
        ("", False, "label-not-a-number"),
        ("high", False, "label-not-a-number"),
    ],
)
def test_labels_out_of_range(valence: str, *, kept: bool, code: str | None) -> None:
    labels = read_image_labels(f",img,valence,arousal\n0,a,{valence},0.5\n".encode())
    assert len(labels.rows) == kept
    assert labels.counts == ({code: 1} if code else {})


def test_missing_ids_and_unusable_captions() -> None:
    labels = read_music_labels(MUSIC + b"3,,0.5,0.5,nameless\n4,11-1,0.5,0.5,\n5,11-2,0.5,0.5\n")
    assert labels.counts == {"missing-id": 1, "unusable-caption": 2}
    assert labels.rows["caption"].tolist()[-2:] == ["", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b",img,valence\n0,a,0.5\n", "image_va.csv: has no column 'arousal'"),
        (b"", "image_va.csv: is not a CSV table"),
        (b",img,valence,arousal\n0,\xff\xfe,0,0\n", "image_va.csv: is not a CSV table in UTF-8"),
        (b",img,valence,arousal\n0,a,0,0,1,2\n1,a\n0,b,0,0,0,0,0,0,0\n", "image_va.csv: is not a CSV table"),
    ],
)
def test_a_file_that_is_no_such_table_is_one_line_for_the_user(content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_image_labels(content)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.csv: cannot be read: No such file"):
        read_image_labels(tmp_path / "nowhere.csv")


label = st.sampled_from(["0", "0.5", "1", "1.005", "1.5", "-1", "nan", "", "x"])
row = st.tuples(st.sampled_from(["", "a", "b", "c-1", "c-2", " a "]), label, label, st.sampled_from(["", "calm", "\0"]))


@given(st.lists(row, max_size=12))
def test_rows_in_are_rows_kept_and_rows_reported(rows: list[tuple[str, str, str, str]]) -> None:
    content = ",Clip ID,Valence,Arousal,Caption\n" + "".join(
        f"{n},{i},{v},{a},{c}\n" for n, (i, v, a, c) in enumerate(rows)
    )
    labels = read_music_labels(content.encode())
    assert labels.rows_in == len(rows) == len(labels.rows) + sum(problem.dropped for problem in labels.problems)
    assert labels.rows["id"].is_unique
    assert all(-0.01 <= v <= 1.01 for v in labels.rows["valence"])
    assert {problem.code for problem in labels.problems} <= set(PROBLEM_CODES)
    assert not any(math.isnan(a) for a in labels.rows["arousal"])


@pytest.mark.parametrize(
    ("image_id", "source"),
    [
        ("1050", "IAPS"),
        ("1050.1", "IAPS"),
        ("Faces_277_v", "NAPS"),
        ("frame_ehvuajnvkgem5li0", "EMOTIC"),
        ("0qrggiyfqfxsynwvjm", "EMOTIC"),
        ("labelme_ihpgihxxnmwqdcd", "EMOTIC"),
        ("holiday photo", "other"),
    ],
)
def test_source_by_pattern(image_id: str, source: str) -> None:
    assert image_source(image_id) == source


@pytest.mark.parametrize(("clip", "song"), [("2-9", "2"), ("my-song-12", "my-song"), ("solo", "solo"), ("-1", "-1")])
def test_song_of_a_clip(clip: str, song: str) -> None:
    assert song_of(clip) == song


def test_files_are_found_in_any_case_of_extension_and_folder() -> None:
    names = ["images/3053.JPG", "b.jpg", "b.png", "1050.1.jpg", "c.txt", "3053.wav", "deep/er/d.JpG"]
    keys = {name: name for name in ("3053", "b", "1050.1", "c", "d", "D")} | {"by path": "deep/er/d.JpG"}
    files, problems = match_files(keys, names, ["jpg", "png"])
    path = "deep/er/d.JpG"
    assert files == {"3053": "images/3053.JPG", "1050.1": "1050.1.jpg", "d": path, "by path": path}
    assert [(problem.code, problem.id) for problem in problems] == [
        ("ambiguous-file", "b"),
        ("missing-file", "c"),
        ("missing-file", "D"),
    ]

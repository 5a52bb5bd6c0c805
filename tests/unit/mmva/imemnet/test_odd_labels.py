"""Label files as spreadsheets write them: what is wrong is named, and nothing is read wrongly."""

from __future__ import annotations

import unicodedata

import pytest

from mmva.data.labels import match_files
from mmva.errors import UsageError
from mmva.imemnet.published import read_image_labels


@pytest.mark.parametrize(("label", "shown"), [('"0,5"', "'0,5'"), ("", "''"), ("high", "'high'"), ("NaN", "'NaN'")])
def test_a_label_that_is_not_a_number_is_shown_as_it_is_written(label: str, shown: str) -> None:
    labels = read_image_labels(f"img,valence,arousal\na,{label},0.5\nb,0.5,0.5\nc,7,0.5\n".encode())
    assert labels.rows["id"].tolist() == ["b"]
    hint = "; write a decimal point" if "," in shown else ""
    assert [(problem.id, problem.code, problem.detail) for problem in labels.problems] == [
        ("a", "label-not-a-number", f"valence {shown} is not a number{hint}"),
        ("c", "label-out-of-range", "valence 7 of 0 to 1, arousal 0.5 of 0 to 1"),
    ]


def test_an_id_finds_the_file_of_the_same_text() -> None:
    composed, split = (unicodedata.normalize(form, "café_ü") for form in ("NFC", "NFD"))
    assert composed != split
    for wanted, name in ((composed, split), (split, composed)):
        assert match_files({wanted: wanted}, [f"m/{name}.jpg", "x.jpg"], ["jpg"]) == ({wanted: f"m/{name}.jpg"}, [])
    both = [f"{composed}.jpg", f"{split}.jpg"]
    assert match_files({composed: composed, split: split}, both, ["jpg"])[0] == {composed: both[0], split: both[1]}
    twice = [f"a/{split}.jpg", f"b/{split}.jpg"]
    [problem] = match_files({composed: composed}, twice, ["jpg"])[1]
    assert (problem.code, problem.detail) == ("ambiguous-file", ", ".join(twice))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('img,valence,arousal\na,0.5,0.5\nb,0.5,"0.5\nc,0.5,0.5\n', "line 3: an unclosed quote"),
        ("img,valence,arousal\na,0.5,0.5,x\n", "line 2: Row #2: Expected 3 columns, got 4"),
        ('img,valence,arousal\n"a"b,0.5,0.5\n', "line 2: text after a closing quote"),
        ("img,valence,arousal\na,0.5,0.5,\nb,0.5,0.5,\n", "line 2: Row #2: Expected 3 columns, got 4"),
        ("img,valence,arousal,Img\na,0.5,0.5,b\n", "has the column 'img' 2 times"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(content: str, says: str) -> None:
    with pytest.raises(UsageError, match=r"^image_va\.csv: ") as caught:
        read_image_labels(content.encode())
    assert says in str(caught.value)

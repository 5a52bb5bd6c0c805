"""Tables of labels in every format that is read, as strings; mistakes are one line."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from mmva.data.tables import read_cells
from mmva.errors import UsageError

ROWS = [{"file": "a b.jpg", "valence": "0.5"}, {"file": "ü, c.jpg", "valence": "1"}]


def parquet() -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame({"file": ["a b.jpg", "ü, c.jpg"], "valence": ["0.5", "1"]}).to_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", 'file,valence\na b.jpg,0.5\n"ü, c.jpg",1\n'.encode("utf-8-sig")),
        ("t.csv", 'file,valence\r\na b.jpg,0.5\r\n"ü, c.jpg",1\r\n'.encode()),
        ("t.csv", "file;valence\na b.jpg;0.5\nü, c.jpg;1\n".encode()),
        ("t.csv", "file\tvalence\na b.jpg\t0.5\nü, c.jpg\t1\n".encode()),
        ("t.TSV", "file\tvalence\na b.jpg\t0.5\nü, c.jpg\t1\n".encode()),
        ("t.jsonl", '{"file": "a b.jpg", "valence": 0.5}\n\n{"file": "ü, c.jpg", "valence": 1}\n'.encode()),
        ("t.parquet", parquet()),
    ],
)
def test_all_formats_give_the_same_strings(name: str, data: bytes) -> None:
    cells = read_cells(data, name)
    assert cells.choose({"file": "file", "Valence": "valence"}).to_dict("records") == ROWS
    assert cells.ragged == ()


def test_what_is_missing_is_empty_in_every_format() -> None:
    assert read_cells(b"a,b\n1\n", "t.csv").rows.to_dict("records") == [{"a": "1", "b": ""}]
    assert read_cells(b'{"a": 1, "b": null}\n{"b": 2}\n', "t.jsonl").rows.to_dict("list") == {
        "a": ["1", ""],
        "b": ["", "2"],
    }


def test_a_number_that_is_missing_from_a_parquet_file_is_empty() -> None:
    buffer = io.BytesIO()
    pd.DataFrame({"sd": [0.5, float("nan"), None]}).to_parquet(buffer)
    assert read_cells(buffer.getvalue(), "t.parquet").rows["sd"].tolist() == ["0.5", "", ""]


def test_a_decimal_comma_without_quotes_makes_a_row_too_long_and_is_reported() -> None:
    cells = read_cells(b"file,valence,arousal\na,0.5,0.5\nb,0,5,0,5\n", "t.csv")
    assert cells.rows["file"].tolist() == ["a"]
    assert cells.ragged == (
        "line 3: Row #3: Expected 3 columns, got 5; is there a decimal comma, or a comma in a text without quotes?",
    )


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("t.csv", b"", "t.csv: is not a CSV table in UTF-8"),
        ("t.csv", b"a,b\n\xff,1\n", "t.csv: is not a CSV table in UTF-8"),
        ("t.jsonl", b"{", "t.jsonl: is not a file of JSON lines"),
        ("t.jsonl", b"[1]", "t.jsonl: is not a file of JSON lines in UTF-8: a line is not an object"),
        ("t.parquet", b"PAR1", "t.parquet: is not a Parquet file"),
    ],
)
def test_what_is_no_table_is_one_line(name: str, data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        read_cells(data, name)
    assert "\n" not in str(error.value)


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"t\.csv: has no column 'valance'; did you mean 'valence'"):
        read_cells(b"file,valence\n", "t.csv").choose({"valance": "valence"})

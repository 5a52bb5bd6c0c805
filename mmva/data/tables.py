"""Read tables of labels: every cell is a string, and every error is one line with file and column.

CSV (with commas, semicolons or tabs), TSV, Parquet and JSON lines, in UTF-8.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from mmva.data.csv_rows import NOT_UTF8, Malformed, csv_rows
from mmva.errors import UsageError


@dataclass(frozen=True)
class Cells:
    """The cells of a table, unchanged."""

    name: str  # for errors
    rows: pd.DataFrame  # strings; "" for a missing cell
    ragged: tuple[str, ...] = ()  # the problem of each malformed row; `rows` does not contain these

    def choose(self, columns: Mapping[str, str], optional: Collection[str] = ()) -> pd.DataFrame:
        """Select and rename columns (`columns`: the file's name -> our name).

        `Clip ID`, `clip_id` and `CLIP_ID` are the same column. A missing column in `optional` becomes "". Raises
        UsageError if another column is missing, or a column occurs twice.
        """
        found: dict[str, int] = {}
        times = Counter(map(_normal, self.rows.columns))
        for position, column in enumerate(self.rows.columns):
            found.setdefault(_normal(column), position)
        chosen = {}
        for theirs, ours in columns.items():
            if times[_normal(theirs)] > 1:
                raise UsageError(f"{self.name}: has the column {theirs!r} {times[_normal(theirs)]} times")
            if _normal(theirs) in found:
                chosen[ours] = self.rows.iloc[:, found[_normal(theirs)]]
            elif theirs in optional:
                chosen[ours] = pd.Series("", index=self.rows.index, dtype=object)
            else:
                raise UsageError(f"{self.name}: has no column {theirs!r}; {_instead(theirs, list(self.rows.columns))}")
        return pd.DataFrame(chosen, index=self.rows.index)


def read_cells(data: bytes, name: str) -> Cells:
    """Read a table by its extension; an unknown extension means CSV. Raises UsageError for another format."""
    extension = name.rpartition(".")[2].lower()
    readers: dict[str, tuple[str, Callable[[bytes, str], Cells]]] = {
        "parquet": ("a Parquet file", _parquet), "jsonl": ("a file of JSON lines in UTF-8", _json_lines),
        "ndjson": ("a file of JSON lines in UTF-8", _json_lines),
    }  # fmt: skip
    kind, read = readers.get(extension, ("a CSV table in UTF-8", _delimited))
    try:
        return read(data, name)
    except ValueError as error:  # among them UnicodeDecodeError, JSONDecodeError and ArrowInvalid
        raise UsageError(f"{name}: is not {kind}: {' '.join(str(error).split())}") from error


def read_strings(
    source: str | Path | bytes, name: str, columns: Mapping[str, str], optional: Collection[str] = ()
) -> pd.DataFrame:
    """Some columns of a table (a path, or its content with a name for errors); see Cells.choose.

    Raises UsageError if the file is missing, is not a table, has a malformed row, or lacks a column.
    """
    if not isinstance(source, bytes):
        name = str(source)
    try:
        cells = read_cells(source if isinstance(source, bytes) else Path(source).read_bytes(), name)
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
    if cells.ragged:
        raise UsageError(f"{name}: is not a CSV table in UTF-8: {cells.ragged[0]}")
    return cells.choose(columns, optional)


def _delimited(data: bytes, name: str) -> Cells:
    ragged: list[str] = []
    header: list[str] = []

    def leave_out(row: Malformed) -> None:
        if not header or row.reason == NOT_UTF8:
            raise ValueError(f"line {row.line}: {row.detail}")
        ragged.append(f"line {row.line}: {row.detail}; is there a decimal comma, or a comma in a text without quotes?")

    rows = csv_rows(io.BytesIO(data), leave_out, _delimiter(data.decode("utf-8-sig", "replace"), name), pad=True)
    header += next(rows, [])
    if not any(header):
        raise ValueError("it has no header")
    return Cells(name, pd.DataFrame(list(rows), columns=header, dtype=object), tuple(ragged))


def _delimiter(text: str, name: str) -> str:
    """The file type's delimiter, or another one if the header only has that."""
    first_line = text.partition("\n")[0]
    by_name = "\t" if name.lower().endswith((".tsv", ".tab")) else ","
    return by_name if by_name in first_line else next((mark for mark in ";\t" if mark in first_line), by_name)


def _parquet(data: bytes, name: str) -> Cells:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pq.read_table(pa.BufferReader(data)).to_pydict()
    return _of_values(name, {str(column): values for column, values in columns.items()})


def _json_lines(data: bytes, name: str) -> Cells:
    lines = [json.loads(line) for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError("a line is not an object")
    columns = dict.fromkeys(key for line in lines for key in line)
    return _of_values(name, {column: [line.get(column) for line in lines] for column in columns})


def _of_values(name: str, columns: Mapping[str, list[Any]]) -> Cells:
    texts = {column: [_text(value) for value in values] for column, values in columns.items()}
    return Cells(name, pd.DataFrame(texts, dtype=object))


def _text(value: Any) -> str:
    """The text of a value; "" for a missing one (None, or NaN in a column of numbers)."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _instead(wanted: str, columns: list[str]) -> str:
    near = get_close_matches(wanted, columns, n=1)
    seen = ", ".join(repr(column) for column in columns)
    return f"did you mean {near[0]!r}? Its columns are {seen}" if near else f"its columns are {seen}"


def _normal(column: str) -> str:
    return column.strip().casefold().replace(" ", "_")

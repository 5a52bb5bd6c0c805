"""The one way a published CSV is opened: every cell a string, every mistake one line that names file and column."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from mmva.csv_rows import Malformed, csv_rows
from mmva.errors import UsageError


def read_strings(
    source: str | Path | bytes, name: str, columns: Mapping[str, str], optional: Collection[str] = ()
) -> pd.DataFrame:
    """Columns of a CSV as strings under our names; extra columns (the row index) are left out.

    Args:
        source: Path or content.
        name: What errors call the content when `source` is bytes; a path is called by itself.
        columns: Our name by the file's; `Clip ID`, `clip_id` and `CLIP_ID` are the same column.
        optional: Columns of the file that become "" when they are missing.

    Raises:
        UsageError: If the file is missing, is no CSV in UTF-8, has a malformed row, lacks a column or has it twice.
    """
    if not isinstance(source, bytes):
        name = str(source)

    def refuse(row: Malformed) -> None:
        raise UsageError(f"{name}: is not a CSV table in UTF-8: line {row.line}: {row.detail}")

    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
    header, *rows = list(csv_rows(io.BytesIO(content), refuse, pad=True)) or [[]]
    if not header:
        raise UsageError(f"{name}: is not a CSV table in UTF-8: it is empty")
    found: dict[str, list[int]] = {}
    for place, column in enumerate(header):
        found.setdefault(_normal(column), []).append(place)
    seen = ", ".join(map(repr, header))
    for theirs in columns:
        places = found.get(_normal(theirs), [])
        if len(places) > 1:
            raise UsageError(f"{name}: has the column {theirs!r} {len(places)} times; its columns are {seen}")
        if not places and theirs not in optional:
            raise UsageError(f"{name}: has no column {theirs!r}; its columns are {seen}")
    place_of = {ours: found[_normal(theirs)][0] for theirs, ours in columns.items() if _normal(theirs) in found}
    table = pd.DataFrame(rows, columns=range(len(header)), dtype=str)
    chosen = {ours: table[place] for ours, place in place_of.items()}
    return pd.DataFrame(chosen, index=table.index).reindex(columns=list(columns.values()), fill_value="")


def _normal(column: str) -> str:
    return column.strip().casefold().replace(" ", "_")

"""The one way a published CSV is opened: every cell a string, every mistake one line that names file and column."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

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
        UsageError: If the file is missing, is no CSV in UTF-8, or lacks a column.
    """
    if not isinstance(source, bytes):
        name = str(source)
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: is not a CSV table in UTF-8: {' '.join(str(error).split())}") from error
    found = {_normal(column): column for column in table.columns}
    missing = [column for column in columns if _normal(column) not in found and column not in optional]
    if missing:
        seen = ", ".join(repr(column) for column in table.columns)
        raise UsageError(f"{name}: has no column {missing[0]!r}; its columns are {seen}")
    present = {theirs: ours for theirs, ours in columns.items() if _normal(theirs) in found}
    chosen = {ours: table[found[_normal(theirs)]].fillna("") for theirs, ours in present.items()}
    return pd.DataFrame(chosen, index=table.index).reindex(columns=list(columns.values()), fill_value="")


def _normal(column: str) -> str:
    return column.strip().casefold().replace(" ", "_")

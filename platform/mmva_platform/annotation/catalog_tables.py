"""Rows of a catalog's table: Parquet, CSV or JSONL, one at a time, every mistake one line that names the file."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mmva.errors import UsageError

COLUMNS: Final = ("id", "uri", "modality", "caption", "bytes", "etag")
TABLE_SUFFIXES: Final = (".parquet", ".csv", ".jsonl", ".ndjson")
_BATCH_ROWS: Final = 10_000
Row = dict[str, Any]


def read_rows(data: bytes, uri: str) -> Iterator[Row]:
    """Rows of a table as they stand, by the format that the name says.

    Raises:
        UsageError: If it is not such a table, or has neither a column uri nor caption.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    return {".parquet": _read_parquet, ".csv": _read_csv}.get(suffix, _read_jsonl)(data, uri)


def _read_parquet(data: bytes, uri: str) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"catalog {uri}: not a Parquet file ({_one_line(error)})") from None
    _check_columns(file.schema_arrow.names, uri)
    known = [name for name in COLUMNS if name in file.schema_arrow.names]
    for batch in file.iter_batches(_BATCH_ROWS, columns=known):
        yield from batch.to_pylist()


def _read_csv(data: bytes, uri: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.DictReader(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""))
        _check_columns(reader.fieldnames or (), uri)
        yield from reader
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"catalog {uri}: not a UTF-8 CSV file ({_one_line(error)})") from None


def _read_jsonl(data: bytes, uri: str) -> Iterator[Row]:
    keys: set[str] = set()
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"catalog {uri}, line {number}: not JSON ({_one_line(error)})") from None
        if not isinstance(row, dict):
            raise UsageError(f"catalog {uri}, line {number}: must be an object with 'uri' or 'caption'")
        keys.update(row)
        yield row
    if keys:
        _check_columns(sorted(keys), uri)


def _check_columns(found: Iterable[object], uri: str) -> None:
    names = [str(name) for name in found]
    if not {"uri", "caption"} & set(names):
        raise UsageError(f"catalog {uri}: needs a column 'uri' or 'caption'; found {', '.join(names) or 'none'}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

"""Table files of a catalog, read in parts: Parquet, CSV and JSONL, alone or many in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import BinaryIO, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mmva.errors import UsageError
from mmva_platform.storage import StorageError

TABLE_SUFFIXES: Final = (".parquet", ".csv", ".jsonl", ".ndjson")
COLUMNS: Final = ("id", "uri", "modality", "caption", "bytes", "etag")
_INVENTORY: Final = ("bucket", "key", "size", "etag", "islatest", "isdeletemarker")
_BATCH_ROWS: Final = 65_536
_CSV_BLOCK: Final = 16 * 2**20  # bytes; a row must be shorter


def read_table_file(file: BinaryIO, uri: str) -> Iterator[dict[str, pa.Array]]:
    """Columns of a table file by name, some rows at a time, with the types that they have in the file.

    Args:
        file: The open file, seekable.
        uri: Its URI; the extension decides the format.

    Returns:
        Arrays of equal length: some of COLUMNS, or bucket, key, size, ... of an S3 Inventory.

    Raises:
        UsageError: If it is not such a table, or has no column uri, caption or key; one line that names the file.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    return {".parquet": _parquet, ".csv": _csv}.get(suffix, _jsonl)(file, uri)


def is_inventory(names: Iterable[str]) -> bool:
    """Whether these are the columns of an S3 Inventory."""
    return {"bucket", "key"} <= set(names)


def _parquet(file: BinaryIO, uri: str) -> Iterator[dict[str, pa.Array]]:
    try:
        table = pq.ParquetFile(file)
        wanted = _wanted(table.schema_arrow.names, uri)
        for batch in table.iter_batches(_BATCH_ROWS, columns=list(wanted.values())):
            yield {name: batch.column(column) for name, column in wanted.items()}
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"catalog {uri}: not a Parquet file ({_one_line(error)})") from None


def _csv(file: BinaryIO, uri: str) -> Iterator[dict[str, pa.Array]]:
    reading = pa.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK)  # without threads, errors name the row
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    try:
        names = pa.csv.open_csv(file, reading, parsing).schema.names
        wanted = _wanted(names, uri)
        file.seek(0)
        types = {column: pa.large_string() for column in wanted.values()}
        converting = pa.csv.ConvertOptions(column_types=types, include_columns=list(types))
        for batch in pa.csv.open_csv(file, reading, parsing, converting):
            yield {name: batch.column(column) for name, column in wanted.items()}
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            _wanted([], uri)
        raise UsageError(f"catalog {uri}: not a UTF-8 CSV file ({_one_line(error)})") from None


def _jsonl(file: BinaryIO, uri: str) -> Iterator[dict[str, pa.Array]]:
    """Parsed by json, not by pyarrow, which refuses ids that are numbers in one row and text in another."""
    lines = enumerate(file, start=1)
    seen: dict[str, None] = {}
    while part := list(islice(lines, _BATCH_ROWS)):
        rows = [_json_row(line, number, uri) for number, line in part if line.strip()]
        for row in rows:
            seen |= dict.fromkeys(row)
        if rows:
            wanted = _wanted(list(seen), uri)
            yield {name: _as_text([row.get(column) for row in rows]) for name, column in wanted.items()}


def _json_row(line: bytes, number: int, uri: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"catalog {uri}, line {number}: not JSON ({_one_line(error)})") from None
    if not isinstance(row, dict):
        raise UsageError(f"catalog {uri}, line {number}: must be an object with 'uri' or 'caption'")
    return row


def _as_text(values: list[object]) -> pa.Array:
    """Values as text; null and NaN stay null, lone surrogates (JSON allows them) become question marks."""
    texts = [None if value is None or value != value else str(value) for value in values]  # noqa: PLR0124 - NaN
    safe = [None if text is None else text.encode("utf-8", "replace").decode() for text in texts]
    return pa.array(safe, pa.large_string())


def _wanted(found: list[str], uri: str) -> dict[str, str]:
    """The columns to read: our name -> the file's. Inventories are written as Bucket, bucket, ETag or e_tag."""
    plain = {name.lower().replace("_", ""): name for name in reversed(found)}
    if is_inventory(plain):
        return {name: plain[name] for name in _INVENTORY if name in plain}
    wanted: dict[str, str] = {name: name for name in COLUMNS if name in found}
    if not {"uri", "caption"} & wanted.keys():
        raise UsageError(f"catalog {uri}: needs a column 'uri' or 'caption'; found {', '.join(found) or 'none'}")
    return wanted


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

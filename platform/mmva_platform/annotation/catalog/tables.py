"""Reads table files of a catalog in parts: Parquet, CSV, TSV and JSONL, also with gzip."""

import gzip
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mmva.data.csv_rows import LONGEST_LINE, Malformed, csv_rows
from mmva.errors import UsageError
from mmva_platform.annotation.catalog.cells import column_as_text, json_as_text, refused_type
from mmva_platform.storage import StorageError

_TEXT_SUFFIXES: Final = (".csv", ".tsv", ".jsonl", ".ndjson")
TABLE_SUFFIXES: Final = (".parquet", *_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES))
COLUMNS: Final = ("id", "uri", "modality", "caption", "bytes", "etag")
_INVENTORY: Final = ("bucket", "key", "size", "etag", "islatest", "isdeletemarker")
_BATCH_ROWS: Final = 65_536
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True)
class TableReader:
    """Reads table files."""

    delimiter: str | None = None  # of CSV files; None: a tab in .tsv, a comma in .csv
    skipped: Counter[str] | None = None  # counts malformed rows by reason; None: the first one is an error

    def read(self, file: BinaryIO, uri: str) -> Iterator[dict[str, pa.Array]]:
        """Yield the columns of an open, seekable file by name, some rows at a time.

        The format follows from the URI's extension; gzip is recognized by the first bytes. Columns are some of COLUMNS,
        or those of an S3 Inventory; ids, URIs and texts are large_string. Raises UsageError, with the file and the line
        or row, if it is not such a table, has a malformed row, or lacks a usable column.
        """
        suffix = PurePosixPath(uri.lower().removesuffix(".gz")).suffix
        try:
            if suffix == ".parquet":
                yield from self._parquet(file, uri)
                return
            is_gzip = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            plain = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if is_gzip else file
            yield from (self._jsonl if suffix in {".jsonl", ".ndjson"} else self._csv)(plain, uri)
        except StorageError:
            raise
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise UsageError(f"catalog {uri}: damaged, or cannot be read ({_one_line(error)})") from None

    def _parquet(self, file: BinaryIO, uri: str) -> Iterator[dict[str, pa.Array]]:
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True)
            schema = table.schema_arrow
            wanted = _wanted(schema.names, uri)
        except StorageError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UsageError(f"catalog {uri}: not a Parquet file ({_one_line(error)})") from None
        for name, column in wanted.items():
            if reason := refused_type(name, schema.field(column).type):
                raise UsageError(f"catalog {uri}: column {column!r} {reason}")
        first = 1
        for batch in table.iter_batches(_BATCH_ROWS, columns=list(wanted.values())):
            yield self._checked({name: batch.column(column) for name, column in wanted.items()}, first, uri)
            first += batch.num_rows

    def _checked(self, columns: Mapping[str, pa.Array], first: int, uri: str) -> dict[str, pa.Array]:
        """Columns of a Parquet batch as text, without malformed rows; `first` is the number of the first row."""
        kept = dict(columns)
        bad: dict[int, tuple[str, str]] = {}
        for name, column in columns.items():
            try:
                kept[name], rows, reason = column_as_text(name, column)
            except ValueError as error:
                raise UsageError(f"catalog {uri}: column {name!r} {error}") from None
            bad |= dict.fromkeys(rows, (reason, f"column {name!r} has {reason}"))
        for row in sorted(bad):
            self._leave_out(f"{uri}, row {first + row}", *bad[row])
        if not bad:
            return kept
        good = pa.array(row not in bad for row in range(len(next(iter(columns.values())))))
        return {name: column.filter(good) for name, column in kept.items()}

    def _csv(self, file: BinaryIO, uri: str) -> Iterator[dict[str, pa.Array]]:
        header: list[str] = []

        def leave_out(row: Malformed) -> None:
            if not header:
                raise UsageError(f"catalog {uri}, line {row.line}: not a UTF-8 CSV file ({row.detail})")
            self._leave_out(f"{uri}, line {row.line}", row.reason, f"not a UTF-8 CSV file ({row.detail})")

        delimiter = self.delimiter or ("\t" if ".tsv" in PurePosixPath(uri.lower()).suffixes[-2:] else ",")
        rows = csv_rows(file, leave_out, delimiter)
        header += next(rows, [])
        places = {name: header.index(column) for name, column in _wanted(header, uri).items()}
        while part := list(islice(rows, _BATCH_ROWS)):
            columns = list(zip(*part, strict=True))
            yield {name: pa.array(columns[place], pa.large_string()) for name, place in places.items()}

    def _jsonl(self, file: BinaryIO, uri: str) -> Iterator[dict[str, pa.Array]]:
        """Uses json, because pyarrow refuses ids that are numbers in one row and text in another."""
        lines = enumerate(iter(partial(file.readline, LONGEST_LINE), b""), start=1)
        seen: dict[str, None] = {}
        while part := list(islice(lines, _BATCH_ROWS)):
            parsed = [(number, self._json_row(line, uri, number)) for number, line in part if line.strip()]
            rows = [(number, row) for number, row in parsed if row is not None]
            for _, row in rows:
                if not row.keys() <= seen.keys():
                    seen |= dict.fromkeys(row)
            if rows:
                wanted = _wanted(list(seen), uri)
                cells = [self._json_cells(row, wanted, uri, number) for number, row in rows]
                columns = list(zip(*filter(None, cells), strict=True)) or [()] * len(wanted)
                yield {name: pa.array(column, pa.large_string()) for name, column in zip(wanted, columns, strict=True)}

    def _json_row(self, line: bytes, uri: str, number: int) -> dict[str, object] | None:
        if len(line) == LONGEST_LINE:
            raise UsageError(f"catalog {uri}, line {number}: longer than {LONGEST_LINE} bytes")
        try:
            row = _JSON.decode(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            self._leave_out(f"{uri}, line {number}", "not JSON", f"not JSON ({_one_line(error)})")
            return None
        if not isinstance(row, dict):
            self._leave_out(f"{uri}, line {number}", "not an object", "must be an object with 'uri' or 'caption'")
            return None
        return row

    def _json_cells(
        self, row: dict[str, object], wanted: Mapping[str, str], uri: str, number: int
    ) -> list[str | None] | None:
        try:
            found = [(name, row.get(column)) for name, column in wanted.items()]
            return [v if type(v) is str and v.isascii() else json_as_text(name, v) for name, v in found]
        except TypeError as error:
            self._leave_out(f"{uri}, line {number}", "a value that is not text", str(error))
            return None

    def _leave_out(self, where: str, reason: str, detail: str) -> None:
        if self.skipped is None:
            raise UsageError(f"catalog {where}: {detail}")
        self.skipped[f"malformed row: {reason}"] += 1


def is_inventory(names: Iterable[str]) -> bool:
    """Whether these are the columns of an S3 Inventory."""
    return {"bucket", "key"} <= set(names)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


_JSON: Final = json.JSONDecoder(object_pairs_hook=_once)


def _wanted(found: list[str], uri: str) -> dict[str, str]:
    """The columns to read: our name -> the file's name, without regard to case and surrounding blanks.

    Inventories have names such as Bucket, bucket, ETag or e_tag.
    """
    plain, bare = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for column in found:
        plain[column.strip().lower()].append(column)
        bare[column.strip().lower().replace("_", "")].append(column)
    names, columns = (_INVENTORY, bare) if is_inventory(bare) else (COLUMNS, plain)
    for name in names:
        if len(columns.get(name, [])) > 1:
            twice = " and ".join(map(repr, columns[name]))
            raise UsageError(f"catalog {uri}: has the columns {twice}, which mmva cannot distinguish; rename one")
    wanted = {name: columns[name][0] for name in names if name in columns}
    if not {"uri", "caption", "key"} & wanted.keys():
        other = next((mark for mark in ";\t|" if len(found) == 1 and mark in found[0]), None)
        hint = f"; its delimiter seems to be {other!r} (--delimiter)" if other else ""
        shown = ", ".join(found) or "none"
        raise UsageError(f"catalog {uri}: needs a column 'uri' or 'caption'; found {' '.join(shown.split())}{hint}")
    return wanted


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""Catalogs: what a user wants annotated, read into one table without touching the media.

A catalog is a folder or S3 prefix of media files, or a Parquet, CSV or JSONL table with some of the columns
`id, uri, modality, caption`. Nothing is dropped in silence: files that are no media and rows whose id was seen before
are counted and stand in the plan; a row that cannot be annotated stays, to be quarantined.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import posixpath
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mmva.errors import UsageError
from mmva.media.formats import modality_of
from mmva_platform.annotation.schema import CATALOG_SCHEMA, sha256_hex
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import (
    StorageDenied,
    StorageNotFound,
    StoragePathError,
    open_storage,
    read_uri,
    split_uri,
)

COLUMNS: Final = ("id", "uri", "modality", "caption")
TABLE_SUFFIXES: Final = (".parquet", ".csv", ".jsonl", ".ndjson")
_DUPLICATES_SHOWN = 10
Row = dict[str, Any]


@dataclass(frozen=True)
class Catalog:
    """A catalog as read.

    Attributes:
        uri: Where it was read from.
        items: CATALOG_SCHEMA, one row an item in the catalog's own order; ids are unique.
        skipped: Files of a folder that are no media, counted by extension ("hidden" for dot files).
        duplicates: Rows left out because an earlier row has their id.
        duplicate_ids: The first few such ids.
    """

    uri: str
    items: pa.Table
    skipped: dict[str, int]
    duplicates: int
    duplicate_ids: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over every item's id, URI, modality, caption and known size, in order."""
        digest = hashlib.sha256()
        for batch in self.items.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                digest.update(json.dumps(list(row.values())).encode() + b"\n")
        return digest.hexdigest()


def read_catalog(uri: str, settings: StorageSettings) -> Catalog:
    """Read a catalog.

    Args:
        uri: A folder, an S3 prefix, or a .parquet, .csv, .jsonl or .ndjson table; a local path, file:// or s3://.
        settings: How to reach object storage.

    Raises:
        UsageError: If it does not exist, may not be read, has no usable column or no item; one line.
        StorageError: If storage does not answer.
    """
    skipped: Counter[str] = Counter()
    try:
        rows = (
            _table_rows(uri, settings) if uri.lower().endswith(TABLE_SUFFIXES) else _folder_rows(uri, settings, skipped)
        )
        items, duplicates = _unique(rows)
    except (StorageNotFound, StorageDenied, StoragePathError) as error:
        raise UsageError(f"catalog {uri}: cannot be read ({error})") from None
    if items.num_rows == 0:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        raise UsageError(f"catalog {uri}: no items to annotate" + (f"; skipped {found}" if found else ""))
    return Catalog(
        uri=uri,
        items=items,
        skipped=dict(sorted(skipped.items())),
        duplicates=len(duplicates),
        duplicate_ids=tuple(duplicates[:_DUPLICATES_SHOWN]),
    )


def _unique(rows: Iterable[Row]) -> tuple[pa.Table, list[str]]:
    seen: set[str] = set()
    kept: list[Row] = []
    duplicates: list[str] = []
    for row in rows:
        if row["id"] in seen:
            duplicates.append(row["id"])
            continue
        seen.add(row["id"])
        kept.append(row)
    return pa.Table.from_pylist(kept, schema=CATALOG_SCHEMA), duplicates


def _folder_rows(uri: str, settings: StorageSettings, skipped: Counter[str]) -> Iterator[Row]:
    """One row a media file, by path; a .txt file is a caption whose text is fetched when it is annotated."""
    folder = open_storage(uri, settings)
    if "://" not in folder.uri and not Path(folder.uri).is_dir():
        tables = ", ".join(TABLE_SUFFIXES)
        raise UsageError(f"catalog {uri}: no such folder; give a folder, an S3 prefix or a table ({tables})")
    for entry in folder.list():
        path = PurePosixPath(entry.path)
        modality = modality_of(entry.path)
        if not _is_text(entry.path):
            skipped["name is not UTF-8"] += 1
        elif any(part.startswith(".") for part in path.parts):
            skipped["hidden"] += 1
        elif modality is None:
            skipped[path.suffix.lower() or "without extension"] += 1
        else:
            location = folder.join(entry.path)
            yield {"id": entry.path, "uri": location, "modality": modality, "caption": None, "bytes": entry.size}


def _table_rows(uri: str, settings: StorageSettings) -> Iterator[Row]:
    base = open_storage(split_uri(uri)[0], settings).uri
    data = read_uri(uri, settings)
    suffix = PurePosixPath(uri).suffix.lower()
    read = {".parquet": _read_parquet, ".csv": _read_csv}.get(suffix, _read_jsonl)
    for number, row in enumerate(read(data, uri)):
        yield _normalise({name: _text(row.get(name)) for name in COLUMNS}, number, base)


def _normalise(row: dict[str, str | None], number: int, base: str) -> Row:
    """Fill in what a row leaves out: the URI's folder, the modality, the id."""
    written_uri, caption = row["uri"], row["caption"]
    modality = row["modality"].lower() if row["modality"] else None
    if modality is None:
        modality = modality_of(written_uri) if written_uri else ("caption" if caption else None)
    if row["id"]:
        identity = row["id"]
    elif written_uri:
        identity = written_uri
    else:
        identity = f"caption-{sha256_hex(caption.encode())[:16]}" if caption else f"row-{number}"
    location = _absolute(written_uri, base) if written_uri else None
    # A music row may carry its caption beside it; the modality decides what is annotated.
    text = caption if modality == "caption" else None
    return {"id": identity, "uri": location, "modality": modality, "caption": text, "bytes": None}


def _absolute(uri: str, base: str) -> str:
    """A URI relative to the table's folder in full; on S3 a way out of that folder stays visible, and is refused."""
    if "://" in uri or uri.startswith("/"):
        return uri
    if "://" in base:
        return f"{base}/{posixpath.normpath(uri)}"
    return posixpath.normpath(f"{base}/{uri}")


def _is_text(path: str) -> bool:
    return path.encode("utf-8", "replace").decode() == path


def _text(value: object) -> str | None:
    """A cell as text: null and blank are nothing, lone surrogates (JSON allows them) become question marks."""
    text = "" if value is None else str(value)
    return text.encode("utf-8", "replace").decode() if text.strip() else None


def _check_columns(found: Iterable[object], uri: str) -> None:
    names = [str(name) for name in found]
    if not {"uri", "caption"} & set(names):
        raise UsageError(f"catalog {uri}: needs a column 'uri' or 'caption'; found {', '.join(names) or 'none'}")


def _read_parquet(data: bytes, uri: str) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(io.BytesIO(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"catalog {uri}: not a Parquet file ({_one_line(error)})") from None
    _check_columns(file.schema_arrow.names, uri)
    known = [name for name in COLUMNS if name in file.schema_arrow.names]
    for batch in file.iter_batches(columns=known):
        yield from batch.to_pylist()


def _read_csv(data: bytes, uri: str) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        _check_columns(reader.fieldnames or (), uri)
        yield from reader
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"catalog {uri}: not a UTF-8 CSV file ({_one_line(error)})") from None


def _read_jsonl(data: bytes, uri: str) -> Iterator[Row]:
    keys: set[str] = set()
    for number, line in enumerate(data.split(b"\n"), start=1):
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

"""Catalogs: what a user wants annotated, read into one table without touching the media.

A catalog is a folder or S3 prefix of media files, or a Parquet, CSV or JSONL table with some of the columns
`id, uri, modality, caption, bytes, etag`. Nothing is dropped in silence: files that are no media and rows whose id was
seen before are counted and stand in the plan; a row that cannot be annotated stays, to be quarantined.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmva.errors import UsageError
from mmva.media.formats import modality_of
from mmva_platform.annotation.catalog_tables import COLUMNS, TABLE_SUFFIXES, Row, read_rows
from mmva_platform.annotation.roots import local_path_of
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

_DUPLICATES_SHOWN: Final = 10
_BATCH_ROWS: Final = 10_000  # rows that are Python objects at a time; the rest stands in Arrow


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
    def modalities(self) -> list[str | None]:
        """The modalities of its items, each once; None for rows that do not say."""
        return self.items.column("modality").unique().to_pylist()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every item's id, URI, modality, caption, known size and etag, in order."""
        digest = hashlib.sha256()
        for batch in self.items.to_batches(max_chunksize=_BATCH_ROWS):
            columns = [column.to_pylist() for column in batch.columns]
            for row in zip(*columns, strict=True):
                digest.update(json.dumps(row).encode() + b"\n")
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
        items, duplicates = _unique(_as_table(rows))
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
        duplicate_ids=tuple(duplicates[:_DUPLICATES_SHOWN].to_pylist()),
    )


def _as_table(rows: Iterable[Row]) -> pa.Table:
    parts = [pa.RecordBatch.from_pylist(list(part), schema=CATALOG_SCHEMA) for part in _batched(rows, _BATCH_ROWS)]
    return pa.Table.from_batches(parts, schema=CATALOG_SCHEMA)


def _unique(items: pa.Table) -> tuple[pa.Table, pa.ChunkedArray]:
    """The first row of every id, in order, and the ids of the others."""
    ids = items.column("id")
    if pc.count_distinct(ids).as_py() == items.num_rows:
        return items, ids.slice(0, 0)
    numbered = pa.table({"id": ids, "row": pa.array(np.arange(items.num_rows))})
    first = numbered.group_by("id").aggregate([("row", "min")]).column("row_min").to_numpy()
    kept = np.zeros(items.num_rows, dtype=bool)
    kept[first] = True
    return items.filter(pa.array(kept)), ids.filter(pa.array(~kept))


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
            known = {"caption": None, "bytes": entry.size, "etag": entry.etag}
            yield {"id": entry.path, "uri": folder.join(entry.path), "modality": modality, **known}


def _table_rows(uri: str, settings: StorageSettings) -> Iterator[Row]:
    base = open_storage(split_uri(uri)[0], settings).uri
    for number, row in enumerate(read_rows(read_uri(uri, settings), uri)):
        yield _normalise({name: _text(row.get(name)) for name in COLUMNS}, number, base)


def _normalise(row: dict[str, str | None], number: int, base: str) -> Row:
    """Fill in what a row leaves out: the URI's folder, the modality, the id, a local file's size and time."""
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
    size, etag = _state(location, _whole(row["bytes"]), row["etag"])
    # A music row may carry its caption beside it; the modality decides what is annotated.
    text = caption if modality == "caption" else None
    return {"id": identity, "uri": location, "modality": modality, "caption": text, "bytes": size, "etag": etag}


def _state(uri: str | None, size: int | None, etag: str | None) -> tuple[int | None, str | None]:
    """Size and etag: a local file's own, else what the row says; null where neither is known."""
    path = None if uri is None else local_path_of(uri)
    try:
        state = None if path is None else os.stat(path)  # noqa: PTH116 - a Path for each row costs more than the call
    except (OSError, ValueError):
        return size, etag
    if state is None or not stat.S_ISREG(state.st_mode):
        return size, etag
    return state.st_size, str(state.st_mtime_ns)


def _whole(text: str | None) -> int | None:
    """A size as written, "123" or "123.0"; null for what is none."""
    try:
        value = float(text) if text else -1.0
    except ValueError:
        return None
    return int(value) if 0 <= value < 2**63 else None


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


def _batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of `size`, the last one shorter; itertools has it from Python 3.12."""
    rest = iter(rows)
    while part := list(islice(rest, size)):
        yield part

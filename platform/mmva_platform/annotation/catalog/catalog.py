"""Catalogs: the items to annotate, read batch by batch without opening the media.

A catalog is a folder or S3 prefix of media files, a table (Parquet, CSV, TSV or JSONL) with some of the columns
`id, uri, modality, caption, bytes, etag`, or a folder of such table files as Spark, Athena, Ray or S3 Inventory write
them. Every file and row is accounted for: files that are left out are counted, and a row that cannot be annotated is
quarantined later. Memory does not grow with the catalog.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final, Self

import numpy as np
import pyarrow as pa

from mmva.errors import UsageError
from mmva_platform.annotation.catalog.roots import is_table
from mmva_platform.annotation.catalog.rows import inventory_rows, listed_rows, table_rows
from mmva_platform.annotation.catalog.tables import TABLE_SUFFIXES, TableReader, is_inventory
from mmva_platform.annotation.options import PLAIN_TABLES, TableOptions
from mmva_platform.annotation.schema import CATALOG_SCHEMA
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Storage, StorageDenied, StorageNotFound, StoragePathError, open_storage, split_uri

_BATCH_ROWS: Final = 65_536


class Catalog:
    """A catalog. Each call of `batches` reads it again.

    `uri` is absolute, so a catalog always has the same URI. `skipped` counts what the last reading left out: files that
    are not media by extension ("hidden" for dot files), unlisted files and malformed rows by reason.
    """

    def __init__(
        self, uri: str, read: Callable[[Counter[str]], Iterable[pa.Table]], tables: TableOptions = PLAIN_TABLES
    ) -> None:
        """`read` yields tables of CATALOG_SCHEMA and counts what it skips in its argument; it is not called yet."""
        self.uri, self.tables, self._read = uri, tables, read
        self.skipped: Counter[str] = Counter()

    @classmethod
    def of_table(cls, uri: str, table: pa.Table) -> Self:
        """A catalog of items in memory (CATALOG_SCHEMA)."""
        return cls(uri, lambda _skipped: [table])

    def batches(self) -> Generator[pa.Table]:
        """Rows in the order of the source (CATALOG_SCHEMA), in tables of bounded size; ids may repeat.

        Raises UsageError if the catalog does not exist, cannot be read, or has no usable column or no item,
        StorageError if storage does not answer.
        """
        self.skipped.clear()
        rows = 0
        try:
            for table in self._read(self.skipped):
                rows += table.num_rows
                if table.num_rows:
                    yield table
        except (StorageNotFound, StorageDenied, StoragePathError) as error:
            raise UsageError(f"catalog {self.uri}: cannot be read ({error})") from None
        self.skipped = +self.skipped
        if not rows:
            found = ", ".join(f"{count} {kind}" for kind, count in sorted(self.skipped.items()))
            raise UsageError(f"catalog {self.uri}: no items to annotate" + (f"; skipped {found}" if found else ""))

    def check(self) -> None:
        """Read only the first items, to find mistakes before anything is written; raises as `batches`."""
        with closing(self.batches()) as batches:
            next(batches)

    def sample(self, count: int, seed: int) -> tuple[pa.Table, int]:
        """At most `count` random items in the order of the source, and the number of all rows."""
        rng = np.random.default_rng(seed)
        kept, keys_K, rows = CATALOG_SCHEMA.empty_table(), np.empty(0), 0
        for table in self.batches():
            rows += table.num_rows
            keys_K = np.concatenate([keys_K, rng.random(table.num_rows)])
            best = np.sort(np.argpartition(keys_K, count)[:count]) if len(keys_K) > count else np.arange(len(keys_K))
            kept, keys_K = pa.concat_tables([kept, table]).take(pa.array(best)), keys_K[best]
        return kept, rows


def open_catalog(uri: str, settings: StorageSettings, tables: TableOptions = PLAIN_TABLES) -> Catalog:
    """Open a catalog by its URI; nothing is read yet.

    The URI is a folder, an S3 prefix, a table file or a folder of table files (see TABLE_SUFFIXES): a local path,
    file:// or s3://. Lenient reading counts malformed rows in `Catalog.skipped`. Raises UsageError for any other URI.
    """
    uri = uri.rstrip("/") or "/"

    def reader(skipped: Counter[str]) -> TableReader:
        return TableReader(tables.delimiter, skipped if tables.lenient else None)

    if is_table(uri):
        folder, name = split_uri(uri)
        parent = open_storage(folder, settings)
        return Catalog(
            f"{parent.uri}/{name}", lambda skipped: _of_table(parent, name, settings, skipped, reader(skipped)), tables
        )
    place = open_storage(uri, settings)
    return Catalog(place.uri, lambda skipped: _of_folder(place, skipped, reader(skipped)), tables)


def _of_table(
    parent: Storage, name: str, settings: StorageSettings, skipped: Counter[str], reader: TableReader
) -> Iterator[pa.Table]:
    """One table file, or the table files of a folder that is named like a table."""
    place = open_storage(f"{parent.uri}/{name}", settings)
    local = parent.local_path(name)
    if not local.is_dir() if local else parent.exists(name):
        yield from _rows_of_files(parent, [name], parent.uri, skipped, reader)
        return
    entries = place.walk(on_skip=lambda _path, reason: skipped.update([reason]))
    files = [entry.path for entry in entries if is_table(entry.path) and not _is_marker(entry.path)]
    if not files:
        raise UsageError(f"catalog {place.uri}: cannot be read (no such file, and no folder with table files)")
    yield from _rows_of_files(place, files, parent.uri, skipped, reader)


def _of_folder(place: Storage, skipped: Counter[str], reader: TableReader) -> Iterator[pa.Table]:
    """The media of a folder; of a folder without media, the rows of its table files."""
    if "://" not in place.uri and not Path(place.uri).is_dir():
        tables = ", ".join(TABLE_SUFFIXES)
        raise UsageError(f"catalog {place.uri}: no such folder; give a folder, an S3 prefix or a table ({tables})")
    files: list[str] = []
    found = False
    unlisted = Counter[str]()
    entries = place.walk(on_skip=lambda _path, reason: unlisted.update([reason]))
    while part := list(islice(entries, _BATCH_ROWS)):
        # A .txt file is a caption whose text is fetched when it is annotated.
        paths, sizes, etags = map(pa.array, zip(*part, strict=True))
        media = listed_rows(paths, sizes, etags, place.uri.rstrip("/"), skipped)
        found = found or media.num_rows > 0
        yield media
        if not found:
            files += [entry.path for entry in part if is_table(entry.path) and not _is_marker(entry.path)]
    if found:
        files = []
    if files:
        skipped.clear()  # a catalog of tables: their markers and checksums are not media that were left out
    skipped.update(unlisted)
    yield from _rows_of_files(place, files, place.uri, skipped, reader)


def _rows_of_files(
    place: Storage, paths: list[str], base: str, skipped: Counter[str], reader: TableReader
) -> Iterator[pa.Table]:
    """Rows of table files one after another; relative URIs start from `base`."""
    first = 0
    for path in paths:
        with place.open(path) as file:
            for columns in reader.read(file, f"{place.uri}/{path}"):
                yield inventory_rows(columns, skipped) if is_inventory(columns) else table_rows(columns, first, base)
                first += len(next(iter(columns.values())))


def _is_marker(path: str) -> bool:
    """Whether Spark or Hive wrote this file next to a table, such as _SUCCESS or .x.crc."""
    return any(part.startswith(("_", ".")) for part in path.split("/"))

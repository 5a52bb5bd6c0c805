"""Reads an annotation from Python: any version, some columns, in parallel.

    for table in open_annotation("va/photos", settings).tables(["id", "valence", "arousal"]): ...

Only the requested columns are read, with page checksums. `verify` checks complete files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.plan.plan import ModelInfo, cleaned_mark
from mmva_platform.annotation.schema import EMBEDDING_FILE_SCHEMA, REFERENCE_SCHEMA, SCHEMAS
from mmva_platform.annotation.table.delta import TableFile, files_of, open_table
from mmva_platform.annotation.table.publish import VersionRecord, read_record
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Storage, StorageError, StorageNotFound, open_storage

if TYPE_CHECKING:
    import ray.data

ValueT = TypeVar("ValueT")
ResultT = TypeVar("ResultT")

# Columns that are in the files of embeddings: name for readers -> name in these files.
EMBEDDING_COLUMNS: Final = {"embedding": "embedding", "window_embeddings": "windows"}
_READERS: Final = 8  # files in parallel, to hide the latency of remote storage


@dataclass(frozen=True)
class Annotation:
    """A version of an annotation; `all_files` are its data files, annotated and quarantined, by path."""

    storage: Storage
    version: int
    all_files: tuple[TableFile, ...]

    @property
    def uri(self) -> str:
        """URI of the annotation."""
        return self.storage.uri

    @property
    def record(self) -> VersionRecord:
        """The record of the version."""
        return read_record(self.storage, self.version)

    @property
    def model(self) -> ModelInfo:
        """The model that the version was made with."""
        return self.record.model

    def files(self, status: str = "ok", modality: str | None = None) -> list[TableFile]:
        """Data files of annotated ("ok") or "quarantined" items, in the order of `tables`."""
        return [file for file in self.all_files if file.status == status and modality in {None, file.modality}]

    def count(self, status: str = "ok", modality: str | None = None) -> int:
        """Number of annotated or quarantined items."""
        return sum(file.rows for file in self.files(status, modality))

    def tables(
        self, columns: Sequence[str] | None = None, status: str = "ok", modality: str | None = None
    ) -> Iterator[pa.Table]:
        """Rows, one table per file; some files are read ahead, so memory does not grow with the annotation.

        `columns` are those of ANNOTATION_SCHEMA or, for status "quarantined", of QUARANTINE_SCHEMA (default: all), and
        "embedding" and "window_embeddings" of annotated items. Raises UsageError for an unknown column, CheckFailed if
        a file is damaged, missing or of another schema.
        """
        names = self._checked(columns, status)
        yield from _ahead(lambda file: self.read(file, names), self.files(status, modality))

    def table(self, columns: Sequence[str] | None = None, status: str = "ok", modality: str | None = None) -> pa.Table:
        """All rows in memory; see `tables`."""
        names = self._checked(columns, status)
        empty = pa.schema([_field(status, name) for name in names]).empty_table()
        return pa.concat_tables([empty, *self.tables(names, status, modality)])

    def read(self, file: TableFile, columns: Sequence[str]) -> pa.Table:
        """Columns of one file; raises as `tables`."""
        heavy = [name for name in EMBEDDING_COLUMNS if name in columns and file.status == "ok"]
        stored = [name for name in columns if name not in {*heavy, "modality"}]
        references = [name for name in REFERENCE_SCHEMA.names if heavy and name not in stored]
        rows = read_columns(self.storage, file.path, [*stored, *references])
        if rows.num_rows != file.rows:
            raise CheckFailed(f"{self.storage.join(file.path)}: {rows.num_rows} rows, the table says {file.rows}")
        values = {name: rows[name] for name in stored}
        values["modality"] = pa.repeat(pa.scalar(file.modality, pa.string()), rows.num_rows)
        if heavy:
            found = self.embeddings_of(rows, [EMBEDDING_COLUMNS[name] for name in heavy])
            values |= {name: found[EMBEDDING_COLUMNS[name]] for name in heavy}
        fields = [_field(file.status, name) for name in columns]
        return pa.Table.from_arrays([values[name] for name in columns], schema=pa.schema(fields))

    def embeddings_of(self, rows: pa.Table, columns: Sequence[str]) -> pa.Table:
        """Columns of EMBEDDING_FILE_SCHEMA for rows with embedding_file and embedding_row, in their order."""
        if any(rows[name].null_count for name in REFERENCE_SCHEMA.names):
            raise CheckFailed(f"{self.uri}: version {self.version} has rows without an embedding; run verify")
        encoded = rows["embedding_file"].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_pylist()  # F files
        parts = list(_ahead(lambda name: read_columns(self.storage, name, columns), names))
        end_F = np.cumsum([0, *(part.num_rows for part in parts)])
        file_N = np.asarray(encoded.indices)
        at_N = end_F[file_N] + np.asarray(rows["embedding_row"])
        if not ((end_F[file_N] <= at_N) & (at_N < end_F[file_N + 1])).all():
            raise CheckFailed(f"{self.uri}: version {self.version} refers to embeddings that do not exist; run verify")
        everything = pa.concat_tables([EMBEDDING_FILE_SCHEMA.empty_table().select(columns), *parts])
        if np.array_equal(at_N, np.arange(everything.num_rows)):
            return everything
        return everything.take(pa.array(at_N))

    def to_ray(self, columns: Sequence[str] | None = None) -> ray.data.Dataset:
        """Annotated items as a lazy ray.data.Dataset over exactly this version's files; needs a Ray session.

        `columns` as for `tables`; the read tasks join embeddings. Raises UsageError for an unknown column, or if no
        item is annotated.
        """
        import ray.data

        from mmva_platform.cluster import quiet_ray_data

        names, files = self._checked(columns, "ok"), self.files()
        if not files:
            raise UsageError(f"{self.uri}: no item is annotated; see the quarantine")
        quiet_ray_data()
        blocks = ray.data.from_items([{"file": number} for number in range(len(files))])

        def read(batch: pa.Table) -> pa.Table:
            return pa.concat_tables([self.read(files[number], names) for number in batch["file"].to_pylist()])

        return blocks.map_batches(read, batch_size=1, batch_format="pyarrow")

    def columns(self) -> list[str]:
        """Names of the columns that are read by default for annotated items."""
        return list(SCHEMAS["ok"].names)

    def _checked(self, columns: Sequence[str] | None, status: str) -> list[str]:
        known = SCHEMAS[status].names
        if columns is None:
            return list(known)
        extra = list(EMBEDDING_COLUMNS) if status == "ok" else []
        for name in columns:
            if name not in {*known, *extra}:
                raise UsageError(f"{self.uri}: no column {name!r}; there are {', '.join([*known, *extra])}")
        return list(columns)


def open_annotation(
    out: str | Storage, settings: StorageSettings | None = None, version: int | None = None
) -> Annotation:
    """Open a published version, the newest by default; reads the table's log and no data.

    Raises UsageError if there is no such version, CheckFailed if another program wrote it.
    """
    storage = out if isinstance(out, Storage) else open_storage(out, settings)
    table = open_table(storage, version)
    if storage.exists(cleaned_mark(table.version())):
        raise UsageError(f"{storage.uri}: version {table.version()} was cleaned; `mmva annotations history` lists them")
    return Annotation(storage, table.version(), tuple(files_of(table)))


def read_columns(storage: Storage, path: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of a Parquet file, with page checksums; reads no others, on S3 by range requests.

    Raises CheckFailed if the file is missing or damaged.
    """
    try:
        local = storage.local_path(path)
        with pa.OSFile(str(local)) if local else storage.open(path) as source:
            file = pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)
            missing = set(columns) - set(file.schema_arrow.names)
            if missing:
                raise CheckFailed(f"{storage.join(path)}: its columns are not those of this format")
            return file.read(columns=list(columns))
    except (StorageNotFound, FileNotFoundError):
        raise CheckFailed(f"{storage.join(path)}: is missing; `clean` may have removed its version") from None
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise CheckFailed(f"{storage.join(path)}: damaged ({' '.join(str(error).split())})") from None


def _field(status: str, name: str) -> pa.Field:
    if name in EMBEDDING_COLUMNS and status == "ok":
        return EMBEDDING_FILE_SCHEMA.field(EMBEDDING_COLUMNS[name]).with_name(name)
    return SCHEMAS[status].field(name)


def _ahead(call: Callable[[ValueT], ResultT], values: Sequence[ValueT]) -> Iterator[ResultT]:
    """Results in order, a few of them computed ahead."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="annotation") as pool:
        source = iter(values)
        waiting = deque(pool.submit(call, value) for value in islice(source, _READERS))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(call, value) for value in islice(source, 1))
            yield result

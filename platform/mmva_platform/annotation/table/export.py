"""`export`: writes a version as one plain file, CSV or Parquet, or as a Lance dataset for vector search."""

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mmva.errors import UsageError
from mmva.files import TEMPORARY
from mmva_platform.annotation.table.reader import Annotation, open_annotation
from mmva_platform.settings import Settings

_NESTED: Final = ("windows", "tracks", "embedding", "window_embeddings")
_INTERNAL: Final = ("embedding_file", "embedding_row", "item_digest")


def export(
    out: str,
    file: Path,
    settings: Settings,
    *,
    to: str,
    columns: Sequence[str] | None = None,
    modality: str | None = None,
    version: int | None = None,
) -> int:
    """Write annotated items into one file and return the number of rows; memory holds a few files of the annotation.

    `file` is created on this machine; for Lance it is a folder. `to` is "csv", "parquet" or "lance". `columns` are
    those of Annotation.tables, by default all that the format supports. Lance needs a modality, because embeddings of
    different modalities have different lengths.

    Raises UsageError if the format is unknown or does not support a column, the file exists, or there is no item,
    CheckFailed if a file is damaged.
    """
    if to not in _WRITERS:
        raise UsageError(f"export to {to!r}: choose one of {', '.join(_WRITERS)}")
    if file.exists() or not file.parent.is_dir():
        raise UsageError(f"{file}: export writes a new file into a folder that exists")
    annotation = open_annotation(out, settings.storage, version)
    names = _columns(annotation, to, columns)
    if to == "lance":
        _check_lance(annotation, modality)
    tables = annotation.tables(names, modality=modality)
    first = next(tables, None)
    if first is None:
        raise UsageError(f"{annotation.uri}: no annotated item" + (f" of modality {modality}" if modality else ""))
    part = file.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")  # renamed once it is complete
    try:
        _WRITERS[to](part, first.schema, chain([first], tables))
        part.replace(file)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
    return annotation.count(modality=modality)


def _columns(annotation: Annotation, to: str, columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        left_out = {*_INTERNAL, *(_NESTED if to == "csv" else ())}
        names = [name for name in annotation.columns() if name not in left_out]
        return [*names, "embedding"] if to == "lance" else names
    nested = [name for name in columns if name in _NESTED]
    if to == "csv" and nested:
        raise UsageError(f"export to csv: it cannot hold {', '.join(nested)}; leave them out, or export to parquet")
    return list(columns)


def _write_file(writer: Callable[..., Any], path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with writer(path, schema) as opened:
        for table in tables:
            opened.write_table(table)


def _check_lance(annotation: Annotation, modality: str | None) -> None:
    """Raise UsageError if the embeddings differ in length, or the package is missing."""
    try:
        import lance  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        raise UsageError("export to lance needs the package pylance: pip install 'mmva-platform[lance]'") from None
    if modality is None:
        raise UsageError("export to lance: name a --modality; embeddings of different modalities differ in length")
    kinds: set[str | None] = set()
    for table in annotation.tables(["tracks"], modality=modality):
        kinds.update(pc.unique(pc.binary_join(table["tracks"], "+")).to_pylist())
    if len(kinds) > 1:
        raise UsageError("export to lance: videos with and without sound have embeddings of different lengths")


def _write_lance(path: Path, _schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    import lance

    fixed = map(_fixed, tables)
    first = next(fixed)
    batches = (batch for table in chain([first], fixed) for batch in table.to_batches())
    lance.write_dataset(pa.RecordBatchReader.from_batches(first.schema, batches), path)


def _fixed(table: pa.Table) -> pa.Table:
    """The table with embeddings as lists of fixed size, which vector indexes need."""
    if "embedding" not in table.column_names:
        return table
    lists = table["embedding"].combine_chunks()
    fixed = pa.FixedSizeListArray.from_arrays(lists.flatten(), len(lists[0]))
    return table.set_column(table.column_names.index("embedding"), "embedding", fixed)


_WRITERS: Final[dict[str, Callable[[Path, pa.Schema, Iterator[pa.Table]], None]]] = {
    "csv": partial(_write_file, pyarrow.csv.CSVWriter),
    "parquet": partial(_write_file, partial(pq.ParquetWriter, compression="zstd")),
    "lance": _write_lance,
}

"""The Arrow schemas of an annotation run, with a version, and the bytes they are stored as.

Bump ANNOTATION_VERSION with any change of a column: a run of another version is never resumed or mixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from mmva.inference.tables import ERROR_SCHEMA, ROW_SCHEMA, WINDOW_SCHEMA

ANNOTATION_VERSION: Final = 2

# large_string: the URIs of 50 million items are more than the 2 GiB that a string column can address.
CATALOG_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("uri", pa.large_string()),  # null for a caption whose text is in the catalog
        pa.field("modality", pa.large_string()),  # null where neither the row nor the extension says it
        pa.field("caption", pa.large_string()),  # null for a caption that is a .txt file
        pa.field("bytes", pa.int64()),  # null where only a request for each item would tell
        # Changes when the content does (S3's ETag, a local file's modification time); null where it is not known.
        pa.field("etag", pa.large_string()),
    ]
)

# The items of a plan: the catalog's, in the order of the work.
ITEM_SCHEMA: Final = CATALOG_SCHEMA.append(
    # File of an earlier annotation that holds this item unchanged, relative to it; null for what is annotated anew.
    pa.field("base_file", pa.large_string())
)

# What a run adds to the rows of inference.
STAMP_SCHEMA: Final = pa.schema(
    [
        pa.field("model_name", pa.string(), nullable=False),
        pa.field("model_version", pa.string()),  # null for a bundle that is not registered
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        # The plan's creation, the same in every row: a shard that is run again gives the same bytes.
        pa.field("annotated_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
ANNOTATION_SCHEMA: Final = pa.schema([*ROW_SCHEMA, *STAMP_SCHEMA])

# Of items of more than one window: what their curves are computed from when only the heads have changed.
WINDOW_EMBEDDING_SCHEMA: Final = WINDOW_SCHEMA.set(
    WINDOW_SCHEMA.get_field_index("embedding"), pa.field("embedding", pa.list_(pa.float16()), nullable=False)
)

QUARANTINE_SCHEMA: Final = pa.schema(
    [
        *ERROR_SCHEMA,
        pa.field("attempts", pa.int32(), nullable=False),  # runs so far: 1, and one more for each retry
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
    ]
)

# Columns of few different values; a dictionary of the others would be built only to be given up.
_REPEATED: Final = frozenset({
    "modality", "mood", "tracks", "track", "model_name", "model_version", "model_digest", "run_id", "shard",
    "annotated_at", "stage", "error", "attempts", "base_file",
})  # fmt: skip


def table_to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of one Parquet file; equal tables give equal bytes.

    Embeddings are noise to a compressor, so they are stored plain: reading and writing them is most of what a run over
    stored embeddings does. The rest is zstd.
    """
    leaves = [path for field in table.schema for path in _leaves(field)]
    plain = {path for path in leaves if path.partition(".")[0] == "embedding"}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression={path: "NONE" if path in plain else "zstd" for path in leaves},
        use_dictionary=[path for path in leaves if path.partition(".")[0] in _REPEATED],
        write_statistics=[path for path in leaves if path not in plain],
    )
    return bytes(sink.getvalue())


def parquet_to_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Inverse of table_to_parquet; `columns` reads only these, in the file's order."""
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=columns and list(columns))


def _leaves(field: pa.Field, prefix: str = "", name: str | None = None) -> list[str]:
    """Paths of a field's columns in Parquet: "embedding.list.element", "windows.list.element.start_s"."""
    path = prefix + (name or field.name)
    if pa.types.is_list(field.type):
        return _leaves(field.type.value_field, f"{path}.list.", "element")
    if pa.types.is_struct(field.type):
        return [leaf for inner in field.type for leaf in _leaves(inner, f"{path}.")]
    return [path]


def sha256_hex(data: bytes) -> str:
    """SHA-256 of bytes, in hex: it names and checks files."""
    return hashlib.sha256(data).hexdigest()

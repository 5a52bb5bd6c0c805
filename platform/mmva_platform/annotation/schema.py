"""The Arrow schemas of an annotation, their version, and how tables are stored.

Increase ANNOTATION_VERSION with any change of a column: runs of different versions are never resumed or mixed.
"""

import hashlib
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmva.inference.tables import ERROR_SCHEMA, ROW_SCHEMA

ANNOTATION_VERSION: Final = 3

# large_string: the URIs of 50 million items are more than the 2 GiB that a string column can address.
CATALOG_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("uri", pa.large_string()),  # null for a caption whose text is in the catalog
        pa.field("modality", pa.large_string()),  # null if neither the row nor the extension gives it
        pa.field("caption", pa.large_string()),  # null for a caption that is a .txt file
        pa.field("bytes", pa.int64()),  # null if it would take a request for each item to know it
        # Changes when the content does (S3's ETag, a local file's modification time); null if it is not known.
        pa.field("etag", pa.large_string()),
    ]
)

# The items of a plan: the catalog's, in the order of the work.
ITEM_SCHEMA: Final = pa.schema(
    [
        *CATALOG_SCHEMA,
        pa.field("item_digest", pa.int64(), nullable=False),  # see item_digests
        pa.field("attempts", pa.int32(), nullable=False),  # 1, and 1 more for each retry
        # The place of this item in the version before, if it is unchanged: a file of the table and a row in it. Null
        # for an item that is annotated from its media; the row is -1 if that version has it with another digest.
        pa.field("base_file", pa.large_string()),
        pa.field("base_row", pa.int64()),
    ]
)

# Columns that a run adds to the rows of inference.
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
_FROM_CATALOG: Final = [
    pa.field("caption", pa.string()),  # the text, if it is in the catalog
    pa.field("item_digest", pa.int64(), nullable=False),
]
# Where an item's embedding is: a file below the table's root, and a row in it.
REFERENCE_SCHEMA: Final = pa.schema([pa.field("embedding_file", pa.string()), pa.field("embedding_row", pa.int32())])

# Rows of annotated items. `modality` is a partition of the table: it is in no data file.
ANNOTATION_SCHEMA: Final = pa.schema(
    [*(column for column in ROW_SCHEMA if column.name != "embedding"), *_FROM_CATALOG, *REFERENCE_SCHEMA, *STAMP_SCHEMA]
)
QUARANTINE_SCHEMA: Final = pa.schema(
    [
        *ERROR_SCHEMA,
        *_FROM_CATALOG,
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
    ]
)

# Windows of items that have more than one: new heads compute their curves from these.
_WINDOW: Final = pa.struct([("track", pa.string()), ("start_s", pa.float64()), ("embedding", pa.list_(pa.float16()))])
# A file of embeddings: a row for each annotated item of a shard and modality, in the order of their data file.
EMBEDDING_FILE_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32()), nullable=False),  # its length differs by modality
        pa.field("windows", pa.list_(_WINDOW)),
    ]
)

PARTITIONS: Final = ("status", "modality")
SCHEMAS: Final = {"ok": ANNOTATION_SCHEMA, "quarantined": QUARANTINE_SCHEMA}  # by status
STATUSES: Final = tuple(SCHEMAS)


def _table_schema() -> pa.Schema:
    """Columns of the Delta table, for both kinds of rows. Columns that a kind of row lacks are null in it."""
    fields = {"id": pa.field("id", pa.string()), "status": pa.field("status", pa.string())}
    for column in [*ANNOTATION_SCHEMA, *QUARANTINE_SCHEMA]:
        fields.setdefault(column.name, column.with_nullable(True))  # noqa: FBT003 - Arrow's own signature
    return pa.schema(list(fields.values()))


TABLE_SCHEMA: Final = _table_schema()

# Columns of few different values; dictionaries of the others would be built and then discarded.
_REPEATED: Final = frozenset({
    "modality", "mood", "tracks", "track", "model_name", "model_version", "model_digest", "run_id", "shard",
    "annotated_at", "stage", "error", "attempts", "embedding_file",
})  # fmt: skip


def table_to_parquet(table: pa.Table) -> bytes:
    """The Parquet file of a table, with page checksums; equal tables give equal bytes.

    Embeddings do not compress, so they are stored plain: a run over stored embeddings mostly reads and writes them.
    Other columns are compressed (zstd).
    """
    leaves = [path for field in table.schema for path in _leaves(field)]
    plain = {path for path in leaves if "embedding" in path.split(".")}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression={path: "NONE" if path in plain else "zstd" for path in leaves},
        use_dictionary=[path for path in leaves if path.partition(".")[0] in _REPEATED],
        write_statistics=[path for path in leaves if path not in plain],
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def _leaves(field: pa.Field, prefix: str = "", name: str | None = None) -> list[str]:
    """Paths of a field's columns in Parquet: "embedding.list.element", "windows.list.element.start_s"."""
    path = prefix + (name or field.name)
    if pa.types.is_list(field.type):
        return _leaves(field.type.value_field, f"{path}.list.", "element")
    if pa.types.is_struct(field.type):
        return [leaf for inner in field.type for leaf in _leaves(inner, f"{path}.")]
    return [path]


def item_digests(items: pa.Table) -> NDArray[np.int64]:
    """64-bit digests of catalog rows (CATALOG_SCHEMA), shape [N]; an item with the same digest has not changed.

    Without sizes and etags in the table, a file that was replaced under the same URI is not noticed.
    """
    text = pa.large_string()
    columns = [items[name].cast(text) for name in CATALOG_SCHEMA.names]
    # The length before each value keeps it apart from the next one; null is "-".
    lengths = [pc.binary_length(column).cast(text) for column in columns]
    colon, nothing = pa.scalar(":", text), pa.scalar("-", text)
    pairs = zip(lengths, columns, strict=True)
    parts = [pc.binary_join_element_wise(*pair, colon).fill_null(nothing) for pair in pairs]
    joined = pc.binary_join_element_wise(*parts, pa.scalar("", text))
    digests = (hashlib.blake2b(row.encode(), digest_size=8).digest() for row in joined.to_pylist())
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)

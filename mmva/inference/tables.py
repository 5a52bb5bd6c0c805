"""The Arrow tables of inference: embeddings of items and windows, rows with points, and errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

WINDOW: Final = pa.struct([("start_s", pa.float64()), ("valence", pa.float32()), ("arousal", pa.float32())])

# Columns of an embedded item.
EMBEDDING_FIELDS: Final = {
    one.name: one
    for one in (
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32()), nullable=False),  # its length differs by modality
        # For video: the towers whose embeddings are joined in `embedding`; null for other modalities.
        pa.field("tracks", pa.list_(pa.string())),
        pa.field("duration_s", pa.float64()),  # music and video only
        pa.field("sha256", pa.string(), nullable=False),  # of the media's bytes, or the caption's UTF-8
    )
}
EMBEDDING_SCHEMA: Final = pa.schema(list(EMBEDDING_FIELDS.values()))

ROW_SCHEMA: Final = pa.schema(
    [
        *(EMBEDDING_FIELDS[name] for name in ("id", "uri", "modality")),
        pa.field("valence", pa.float32(), nullable=False),  # both axes in [0, 1], .5 is neutral
        pa.field("arousal", pa.float32(), nullable=False),
        pa.field("valence_low", pa.float32()),  # 90 % conformal interval, null if the bundle has none
        pa.field("valence_high", pa.float32()),
        pa.field("arousal_low", pa.float32()),
        pa.field("arousal_high", pa.float32()),
        EMBEDDING_FIELDS["embedding"],
        pa.field("mood", pa.string(), nullable=False),
        EMBEDDING_FIELDS["tracks"],
        EMBEDDING_FIELDS["duration_s"],
        pa.field("windows", pa.list_(WINDOW)),  # only for items with more than one window
        EMBEDDING_FIELDS["sha256"],
    ]
)

# Windows of the items with more than one, from which their curves are computed.
WINDOW_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("track", pa.string(), nullable=False),  # the tower: "music", or "image" for the frames of a video
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32()), nullable=False),
    ]
)

ERROR_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("stage", pa.string(), nullable=False),  # "catalog", "fetch", "decode" or "infer"
        pa.field("error", pa.string(), nullable=False),  # a stable cause, to group by
        pa.field("message", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),  # null if the bytes could not be read
    ]
)


@dataclass(frozen=True)
class Embedded:
    """Embedded items: each item is in exactly one of `rows` and `errors`, in the items' order.

    `ids` are those of all items; `same_bytes` are those of rows that share the embedding of an item with the same
    bytes. `seconds` is this process's time by stage: "fetch", "decode", "infer".
    """

    ids: pa.Array
    rows: pa.Table  # EMBEDDING_SCHEMA
    windows: pa.Table  # WINDOW_SCHEMA; sorted by item, track and start
    errors: pa.Table  # ERROR_SCHEMA
    same_bytes: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Predicted:
    """Items with points: each item is in exactly one of `rows` and `errors`, in the items' order."""

    rows: pa.Table  # ROW_SCHEMA
    windows: pa.Table  # WINDOW_SCHEMA, of the items in `rows`
    errors: pa.Table  # ERROR_SCHEMA


def table_of(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Columns (Arrow arrays, numpy arrays or lists) as a table with this schema."""
    return pa.Table.from_pydict(columns, schema=schema)


def constant(value: Any, kind: pa.DataType, count: int) -> pa.Array:
    """A column of equal values."""
    return pa.repeat(pa.scalar(value, kind), count)


def offsets(lengths: Sequence[int] | NDArray[np.integer]) -> pa.Array:
    """Offsets of a list array from the lists' lengths."""
    return pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))


def matrix(lists_N: pa.ListArray | pa.ChunkedArray) -> NDArray[np.float32]:
    """Lists of equal length D as a float32 matrix [N, D]; a copy, because torch rejects read-only memory."""
    whole = lists_N.combine_chunks() if isinstance(lists_N, pa.ChunkedArray) else lists_N
    return np.array(whole.flatten(), np.float32).reshape(len(whole), -1)

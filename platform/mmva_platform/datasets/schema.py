"""The dataset's files: their Arrow schema, their description `dataset.json`, and how their bytes come about.

Layout: shards/<modality>-00000.parquet ..., labels.parquet (every row without its media, in shard order),
import_report.json, and dataset.json last and only if absent. Without dataset.json there is no dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mmva_platform.settings import Config

SCHEMA_VERSION: Final = 1
DATASET_FILE: Final = "dataset.json"
LABELS_FILE: Final = "labels.parquet"
REPORT_FILE: Final = "import_report.json"

DATASET_SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("modality", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),  # the song of a clip, the image itself: what a split may not cut through
        ("valence", pa.float64()),
        ("arousal", pa.float64()),
        ("caption", pa.string()),  # of a clip: the caption item with the same id and label; "" where there is none
        ("media", pa.large_binary()),  # the file's own bytes; null in rows of modality "caption"
        ("media_format", pa.string()),
        ("sha256", pa.string()),
    ]
)
LABELS_SCHEMA: Final = DATASET_SCHEMA.remove(DATASET_SCHEMA.get_field_index("media"))
_ROW_GROUP = 128


class ShardInfo(Config):
    """One shard: its path inside the dataset, size and digest."""

    name: str
    modality: str
    rows: int
    bytes: int
    sha256: str


class SplitInfo(Config):
    """How rows came to their splits: the policy ("song", "clip" or a file's name) and the seed."""

    policy: str
    seed: int


class DatasetInfo(Config):
    """Content of dataset.json.

    Attributes:
        schema_version: SCHEMA_VERSION of the writer.
        digest: dataset_digest of the shards; the dataset's version.
        counts: Rows by modality and split; "caption" counts the clips that have one.
        sources: Rows by modality and source.
        labels: Mean, std, min and max by modality and axis.
        split: Policy and seed.
        warnings: What every report about this dataset must repeat.
        labels_sha256: Digest of labels.parquet.
        shards: In order.
    """

    schema_version: int
    digest: str
    counts: dict[str, dict[str, int]]
    sources: dict[str, dict[str, int]]
    labels: dict[str, dict[str, dict[str, float]]]
    split: SplitInfo
    warnings: tuple[str, ...]
    labels_sha256: str
    shards: tuple[ShardInfo, ...]


def dataset_digest(shard_digests: Iterable[str], schema_version: int = SCHEMA_VERSION) -> str:
    """SHA-256 over the schema version and the shards' digests, in order."""
    lines = [f"mmva-dataset {schema_version}", *shard_digests]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def parquet_bytes(table: pa.Table) -> bytes:
    """Parquet file of a table: equal tables give equal bytes. Media stay as they are, the rest is zstd."""
    columns = table.schema.names
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=_ROW_GROUP if "media" in columns else None,
        compression={name: "none" if name in {"media", "embedding"} else "zstd" for name in columns},
        use_dictionary=[name for name in ("source", "modality", "split", "group", "media_format") if name in columns],
        write_statistics=False,
    )
    return bytes(sink.getvalue())


def read_parquet(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Table of a Parquet file's bytes."""
    return pq.read_table(pa.BufferReader(data), columns=columns)


def sha256_of(data: bytes) -> str:
    """Lower-case hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON for people and digests: sorted keys, indented, one newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()

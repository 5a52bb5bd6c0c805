"""Second pass of an import: kept rows with their media into Parquet shards, then the files that make them a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmva.errors import OperationFailed
from mmva.modalities import AXES
from mmva_platform.datasets.inspection import Inspected
from mmva_platform.datasets.schema import (
    DATASET_SCHEMA,
    LABELS_SCHEMA,
    SCHEMA_VERSION,
    DatasetInfo,
    ShardInfo,
    SplitInfo,
    dataset_digest,
    parquet_bytes,
    sha256_of,
)
from mmva_platform.storage import Storage


@dataclass(frozen=True)
class Row:
    """A kept item with its split."""

    entry: Inspected
    split: str

    def values(self) -> dict[str, Any]:
        """The row of LABELS_SCHEMA."""
        candidate = self.entry.candidate
        return {
            **{name: getattr(candidate, name) for name in ("id", "source", "modality", "group", *AXES, "caption")},
            "split": self.split,
            "media_format": self.entry.media_format,
            "sha256": self.entry.sha256,
        }


def plan_shards(rows: Sequence[Row], max_bytes: int, max_rows: int) -> Iterator[tuple[str, list[Row]]]:
    """Cut rows, which are sorted by modality, into named shards of one modality; at least one row each."""
    number: Counter[str] = Counter()
    shard: list[Row] = []
    size = 0
    for row in rows:
        candidate = row.entry.candidate
        full = len(shard) >= max_rows or size + candidate.bytes > max_bytes
        if shard and (full or shard[0].entry.candidate.modality != candidate.modality):
            yield _named(shard, number)
            shard, size = [], 0
        shard.append(row)
        size += candidate.bytes
    if shard:
        yield _named(shard, number)


def _named(shard: list[Row], number: Counter[str]) -> tuple[str, list[Row]]:
    modality = shard[0].entry.candidate.modality
    name = f"shards/{modality}-{number[modality]:05d}.parquet"
    number[modality] += 1
    return name, shard


class ShardWriter:
    """Worker of the second pass: one shard an item, written whole; doing it again gives the same bytes."""

    def __init__(self, media: Storage, out: Storage) -> None:
        self._media = media
        self._out = out

    def __call__(self, item: dict[str, Any]) -> ShardInfo:
        """Write the shard "name" from its "rows"."""
        rows: list[Row] = item["rows"]
        values = [{**row.values(), "media": self._read(row)} for row in rows]
        data = parquet_bytes(pa.Table.from_pylist(values, schema=DATASET_SCHEMA))
        self._out.write(item["name"], data)
        modality = rows[0].entry.candidate.modality
        return ShardInfo(name=item["name"], modality=modality, rows=len(rows), bytes=len(data), sha256=sha256_of(data))

    def _read(self, row: Row) -> bytes:
        path = row.entry.candidate.path
        data = self._media.read(path)
        if sha256_of(data) != row.entry.sha256:
            raise OperationFailed(f"{self._media.join(path)}: changed during the import; run it again")
        return data


def labels_table(rows: Sequence[Row]) -> pa.Table:
    """Rows without media, in shard order."""
    return pa.Table.from_pylist([row.values() for row in rows], schema=LABELS_SCHEMA)


def describe(
    labels: pa.Table, labels_sha256: str, shards: Sequence[ShardInfo], split: SplitInfo, warnings: tuple[str, ...]
) -> DatasetInfo:
    """Content of dataset.json, all of it a function of the rows."""
    frame = labels.to_pandas()
    counts = {str(m): _counts(rows["split"]) for m, rows in frame.groupby("modality")}
    captioned = frame[(frame["caption"] != "")]
    if len(captioned):
        counts["caption"] = _counts(captioned["split"])
    return DatasetInfo(
        schema_version=SCHEMA_VERSION,
        digest=dataset_digest(shard.sha256 for shard in shards),
        counts=counts,
        sources={str(m): _counts(rows["source"]) for m, rows in frame.groupby("modality")},
        labels={
            str(m): {axis: _moments(rows[axis].to_numpy(np.float64)) for axis in AXES}
            for m, rows in frame.groupby("modality")
        },
        split=split,
        warnings=warnings,
        labels_sha256=labels_sha256,
        shards=tuple(shards),
    )


def _counts(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(str(name) for name in names).items()))


def _moments(values_N: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values_N.mean()),
        "std": float(values_N.std()),
        "min": float(values_N.min()),
        "max": float(values_N.max()),
    }

"""Which candidates a shard holds, what a row says, and what dataset.json says of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmva.modalities import AXES
from mmva_platform.datasets.candidates import Candidate
from mmva_platform.datasets.inspection import Inspected
from mmva_platform.datasets.schema import (
    LABELS_SCHEMA,
    SCHEMA_VERSION,
    DatasetInfo,
    ShardInfo,
    SplitInfo,
    dataset_digest,
)


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


@dataclass(frozen=True)
class Planned:
    """A shard to be written: its candidates and the split of each."""

    name: str
    candidates: tuple[Candidate, ...]
    splits: tuple[str, ...]


def plan_shards(
    candidates: Sequence[Candidate], max_bytes: int, max_rows: int
) -> Iterator[tuple[str, list[Candidate]]]:
    """Cut candidates, which are sorted by modality, into named shards of one modality; at least one row each."""
    number: Counter[str] = Counter()
    shard: list[Candidate] = []
    size = 0
    for candidate in candidates:
        full = len(shard) >= max_rows or size + candidate.bytes > max_bytes
        if shard and (full or shard[0].modality != candidate.modality):
            yield _named(shard, number)
            shard, size = [], 0
        shard.append(candidate)
        size += candidate.bytes
    if shard:
        yield _named(shard, number)


def _named(shard: list[Candidate], number: Counter[str]) -> tuple[str, list[Candidate]]:
    modality = shard[0].modality
    name = f"shards/{modality}-{number[modality]:05d}.parquet"
    number[modality] += 1
    return name, shard


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

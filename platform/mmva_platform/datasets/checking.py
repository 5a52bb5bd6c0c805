"""Is a dataset still what was imported? Everything dataset.json says is recomputed from the bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmva.imemnet.published import LABEL_TOLERANCE
from mmva.imemnet.splits import LEAKAGE_WARNING, SPLITS, leaking_groups
from mmva.modalities import AXES
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.schema import (
    DATASET_SCHEMA,
    LABELS_FILE,
    LABELS_SCHEMA,
    ShardInfo,
    dataset_digest,
    read_parquet,
    sha256_of,
)
from mmva_platform.progress import progress
from mmva_platform.settings import Settings
from mmva_platform.storage import StorageNotFound


@dataclass(frozen=True)
class CheckReport:
    """What a check found; `rows` are those of the shards that could be read."""

    uri: str
    digest: str
    rows: int
    problems: list[str]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings are no problems."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"ok": self.ok, **asdict(self)}

    def to_text(self) -> str:
        """A few lines for a person."""
        verdict = "ok" if self.ok else f"{len(self.problems)} problems"
        lines = [f"{self.uri}: {verdict}, {self.rows:,} rows, dataset {self.digest[:12]}"]
        lines += [f"  {problem}" for problem in self.problems]
        lines += [f"WARNING: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def check_dataset(uri: str, settings: Settings | None = None) -> CheckReport:
    """Recompute a dataset's digests, counts and rules from its bytes.

    Raises:
        UsageError: If there is no dataset.
        StorageError: If the place cannot be read.
    """
    dataset = Dataset.open(uri, settings)
    problems: list[str] = []
    tables: list[pa.Table] = []
    digests: list[str] = []
    with progress("check", sum(shard.rows for shard in dataset.shards)) as advance:
        for shard in dataset.shards:
            digest, table, found = _check_shard(dataset, shard)
            problems += found
            digests.append(digest)
            if table is not None:
                tables.append(table)
            advance(shard.rows)
    if dataset_digest(digests) != dataset.digest:
        problems.append("digest: the shards' digests do not give the dataset's")
    rows = pa.concat_tables(tables) if tables else LABELS_SCHEMA.empty_table()
    problems += _check_labels_file(dataset, rows)
    problems += _check_rows(rows, leaks=LEAKAGE_WARNING in dataset.warnings)
    problems += _check_counts(dataset, rows)
    return CheckReport(dataset.uri, dataset.digest, len(rows), problems, dataset.warnings)


def _check_shard(dataset: Dataset, shard: ShardInfo) -> tuple[str, pa.Table | None, list[str]]:
    """Digest of a shard's bytes, its rows without media, and what is wrong with it."""
    try:
        data = dataset.storage.read(shard.name)
    except StorageNotFound:
        return "", None, [f"{shard.name}: missing"]
    digest = sha256_of(data)
    if digest != shard.sha256:
        return digest, None, [f"{shard.name}: sha256 is {digest}, published was {shard.sha256}"]
    table = read_parquet(data)
    if not table.schema.equals(DATASET_SCHEMA):
        return digest, None, [f"{shard.name}: its columns are not those of schema version 1"]
    problems = []
    if len(table) != shard.rows:
        problems.append(f"{shard.name}: {len(table)} rows, dataset.json says {shard.rows}")
    for item_id, media, expected in zip(table["id"], table["media"], table["sha256"], strict=True):
        if media.is_valid and sha256_of(media.as_py()) != expected.as_py():
            problems.append(f"{shard.name}: the media of {item_id.as_py()!r} are not those of its sha256")
    return digest, table.drop_columns(["media"]), problems


def _check_labels_file(dataset: Dataset, rows: pa.Table) -> Iterator[str]:
    try:
        data = dataset.storage.read(LABELS_FILE)
    except StorageNotFound:
        yield f"{LABELS_FILE}: missing"
        return
    if sha256_of(data) != dataset.info.labels_sha256:
        yield f"{LABELS_FILE}: its sha256 is not the published one"
    elif not read_parquet(data).equals(rows):
        yield f"{LABELS_FILE}: its rows are not those of the shards"


def _check_rows(rows: pa.Table, *, leaks: bool) -> Iterator[str]:
    frame = rows.to_pandas()
    for modality, own in frame.groupby("modality"):
        repeated = own["id"][own["id"].duplicated()]
        if len(repeated):
            yield f"{modality}: {len(repeated)} ids stand twice, such as {repeated.iloc[0]!r}"
        va_N2 = own[list(AXES)].to_numpy(np.float64)
        wrong = ~((va_N2 >= -LABEL_TOLERANCE) & (va_N2 <= 1 + LABEL_TOLERANCE)).all(axis=1)  # NaN is wrong, too
        if wrong.any():
            yield f"{modality}: {wrong.sum()} labels are not in [0, 1], such as that of {own['id'][wrong].iloc[0]!r}"
        unknown = sorted(set(own["split"]) - set(SPLITS))
        if unknown:
            yield f"{modality}: split {unknown[0]!r} is not one of {', '.join(SPLITS)}"
        across = leaking_groups(list(own["group"]), list(own["split"]))
        if across and not (leaks and modality == "music"):
            yield f"{modality}: {len(across)} groups stand in more than one split, such as {across[0]!r}"


def _check_counts(dataset: Dataset, rows: pa.Table) -> Iterator[str]:
    frame = rows.to_pandas()
    for modality, counts in dataset.info.counts.items():
        own = frame[frame["caption"] != ""] if modality == "caption" else frame[frame["modality"] == modality]
        found = dict(Counter(own["split"]))
        if found != counts:
            yield f"{modality}: rows by split are {found}, dataset.json says {counts}"

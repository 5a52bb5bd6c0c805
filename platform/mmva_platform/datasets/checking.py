"""Checks a dataset: computes all values of dataset.json again from the bytes."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from mmva.data.labels import LABEL_TOLERANCE
from mmva.data.splits import SPLITS, leaking_groups
from mmva.errors import EnvironmentFault
from mmva.files import sha256_hex
from mmva.imemnet.splits import LEAKAGE_WARNING
from mmva.modalities import AXES
from mmva_platform import bulk
from mmva_platform.cluster import ray_session
from mmva_platform.datasets import schema
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.progress import progress
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, StorageNotFound
from mmva_platform.storage.base import retry_while_unavailable

CLUSTER_FROM: Final = 64  # shards; checking fewer in this process takes less time than starting a cluster


@dataclass(frozen=True)
class CheckReport:
    """The result of a check; `rows` counts those of readable shards."""

    uri: str
    digest: str
    rows: int
    problems: list[str]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no problems; there may be warnings."""
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


@dataclass(frozen=True)
class CheckedShard:
    """Result for a shard: digest of its bytes, its rows without media if they can be read, and problems."""

    digest: str
    rows: pa.Table | None
    problems: tuple[str, ...]


def check_dataset(uri: str, settings: Settings | None = None) -> CheckReport:
    """Compute a dataset's digests, counts and rules again from its bytes; on the cluster if it has many shards.

    Raises UsageError if there is no dataset, StorageError if the place cannot be read.
    """
    settings = settings or Settings()
    dataset = Dataset.open(uri, settings)
    checked = _check_shards(dataset, settings)
    problems = [problem for shard in checked for problem in shard.problems]
    if schema.dataset_digest(shard.digest for shard in checked) != dataset.digest:
        problems.append("digest: the digests of the shards do not give that of the dataset")
    tables = [shard.rows for shard in checked if shard.rows is not None]
    rows = pa.concat_tables(tables) if tables else schema.LABELS_SCHEMA.empty_table()
    problems += _check_labels_file(dataset, rows)
    problems += _check_rows(rows, leaks=LEAKAGE_WARNING in dataset.warnings)
    problems += _check_counts(dataset, rows)
    return CheckReport(dataset.uri, dataset.digest, len(rows), problems, (*dataset.warnings, *_unnamed_files(dataset)))


def _check_shards(dataset: Dataset, settings: Settings) -> list[CheckedShard]:
    checked: dict[str, CheckedShard] = {}
    shards = [{"shard": shard.name, "info": shard} for shard in dataset.shards]
    with progress("check", sum(shard.rows for shard in dataset.shards)) as advance:

        def collect(result: tuple[schema.ShardInfo, CheckedShard]) -> None:
            shard, found = result
            checked[shard.name] = found
            advance(shard.rows)

        if len(shards) < CLUSTER_FROM:
            for shard in dataset.shards:
                collect((shard, check_shard(dataset.storage, shard)))
        else:
            kwargs = {"dataset": dataset.storage, "settings": settings}
            with ray_session(settings.cluster):
                bulk.run_pass(shards, ShardChecker, stage="check", settings=settings, on_result=collect, kwargs=kwargs)
    return [checked[shard.name] for shard in dataset.shards]


class ShardChecker:
    """Worker of a check: reads one shard."""

    def __init__(self, dataset: Storage, settings: Settings) -> None:
        self._dataset, self._patience_s = dataset, settings.storage.patience_s

    def __call__(self, shard: dict[str, Any], attempt: bulk.Attempt) -> tuple[schema.ShardInfo, CheckedShard]:
        """Check the shard of the ShardInfo under "info". Raises EnvironmentFault if the dataset is not visible here."""
        attempt.step("fetch")
        return shard["info"], retry_while_unavailable(lambda: self._checked(shard["info"]), self._patience_s, "check")

    def _checked(self, shard: schema.ShardInfo) -> CheckedShard:
        if not self._dataset.exists(schema.DATASET_FILE):
            raise EnvironmentFault(f"check: {self._dataset.uri} is missing on this worker; every node must see it")
        return check_shard(self._dataset, shard)


def check_shard(dataset: Storage, shard: schema.ShardInfo) -> CheckedShard:
    """Compare a shard with its description, and its media with their digests."""
    try:
        data = dataset.read(shard.name)
    except StorageNotFound:
        return CheckedShard("", None, (f"{shard.name}: missing",))
    digest = sha256_hex(data)
    if digest != shard.sha256:
        return CheckedShard(digest, None, (f"{shard.name}: sha256 is {digest}, published was {shard.sha256}",))
    table = schema.read_parquet(data)
    if not table.schema.equals(schema.DATASET_SCHEMA):
        problem = f"{shard.name}: its columns are not those of schema version {schema.SCHEMA_VERSION}"
        return CheckedShard(digest, None, (problem,))
    problems = []
    if len(table) != shard.rows:
        problems.append(f"{shard.name}: {len(table)} rows, dataset.json says {shard.rows}")
    columns = (table[name] for name in ("id", "media", "caption", "sha256"))
    for item_id, media, text, expected in zip(*columns, strict=True):
        content = media.as_buffer() if media.is_valid else text.as_py().encode()
        if sha256_hex(content) != expected.as_py():
            problems.append(f"{shard.name}: the media or the text of {item_id.as_py()!r} do not have its sha256")
    return CheckedShard(digest, table.drop_columns(["media"]), tuple(problems))


def _check_labels_file(dataset: Dataset, rows: pa.Table) -> Iterator[str]:
    name = dataset.info.labels_file
    try:
        data = dataset.storage.read(name)
    except StorageNotFound:
        yield f"{name}: missing"
        return
    if sha256_hex(data) != dataset.info.labels_sha256:
        yield f"{name}: its sha256 is not the published one"
    elif not schema.read_parquet(data).equals(rows):
        yield f"{name}: its rows are not those of the shards"


def _check_rows(rows: pa.Table, *, leaks: bool) -> Iterator[str]:
    frame = rows.to_pandas()
    for modality, own in frame.groupby("modality"):
        repeated = own["id"][own["id"].duplicated()]
        if len(repeated):
            yield f"{modality}: {len(repeated)} ids occur twice, such as {repeated.iloc[0]!r}"
        va_N2 = own[list(AXES)].to_numpy(np.float64)
        wrong_N = ~((va_N2 >= -LABEL_TOLERANCE) & (va_N2 <= 1 + LABEL_TOLERANCE)).all(axis=1)  # true for NaN, too
        if wrong_N.any():
            example = own["id"][wrong_N].iloc[0]
            yield f"{modality}: {wrong_N.sum()} labels are not in [0, 1], such as that of {example!r}"
        unknown = sorted(set(own["split"]) - set(SPLITS))
        if unknown:
            yield f"{modality}: split {unknown[0]!r} is not one of {', '.join(SPLITS)}"
        across = leaking_groups(list(own["group"]), list(own["split"]))
        if across and not (leaks and modality == "music"):
            yield f"{modality}: {len(across)} groups are in more than one split, such as {across[0]!r}"


def _check_counts(dataset: Dataset, rows: pa.Table) -> Iterator[str]:
    frame = rows.to_pandas()
    for modality, counts in dataset.info.counts.items():
        own = frame[frame["caption"] != ""] if modality == "caption" else frame[frame["modality"] == modality]
        found = dict(Counter(own["split"]))
        if found != counts:
            yield f"{modality}: rows by split are {found}, dataset.json says {counts}"


def _unnamed_files(dataset: Dataset) -> Iterator[str]:
    """Yield a warning about shards of an unfinished import: readers of the whole folder would see their rows."""
    unnamed = [e.path for e in dataset.storage.list(f"{schema.SHARDS_FOLDER}/") if e.path not in dataset.info.files]
    if unnamed:
        yield f"{len(unnamed)} files such as {unnamed[0]} are not part of the dataset; they may be deleted"

"""The files of a dataset: their Arrow schema, their names, and the description `dataset.json`.

Layout: shards/<modality>-<number>-<digest>.parquet, labels-<digest>.parquet (every row without its media, in shard
order), import_report-<digest>.json, and dataset.json, which names the others. It is written last and only if it is
absent: without it there is no dataset. A name contains the first 16 digits of the file's SHA-256, so two imports into
the same place never overwrite a file with other bytes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from mmva.errors import EnvironmentFault
from mmva.files import sha256_hex
from mmva.modalities import AXES
from mmva_platform.settings import Config
from mmva_platform.storage import Storage

SCHEMA_VERSION: Final = 2  # 1 had no standard deviations, and no terms
DATASET_FILE: Final = "dataset.json"
SHARDS_FOLDER: Final = "shards"
DATASET_SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("modality", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),  # such as the song of a clip, or the id of an image; a split keeps a group together
        ("valence", pa.float64()),
        ("arousal", pa.float64()),
        ("valence_sd", pa.float64()),  # of the raters, on the same [0, 1]; null where the source has none
        ("arousal_sd", pa.float64()),
        ("caption", pa.string()),  # a sentence; of a clip: the caption item with its id and label, "" if it has none
        ("media", pa.large_binary()),  # the bytes of the file; null in rows of modality "caption"
        ("media_format", pa.string()),
        ("sha256", pa.string()),  # of the media; of the text in rows of modality "caption"
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
    """How the rows were split, and the seed.

    The policy is "group" (sizes in rows) or "given"; for IMEMNet-C "song", "clip" or the name of a file. Those of
    several sources are separated by commas.
    """

    policy: str
    seed: int


class DatasetInfo(Config):
    """Content of dataset.json."""

    schema_version: int  # SCHEMA_VERSION of the writer
    digest: str  # dataset_digest of the shards; the dataset's version
    counts: dict[str, dict[str, int]]  # rows by modality and split; "caption" counts sentences, and clips that have one
    sources: dict[str, dict[str, int]]  # rows by modality and source
    terms: dict[str, str] = Field(default_factory=dict)  # license or terms of each source
    labels: dict[str, dict[str, dict[str, float]]]  # mean, std, min and max by modality and axis
    split: SplitInfo
    warnings: tuple[str, ...]  # every report about this dataset must repeat them
    labels_file: str = "labels.parquet"  # every row without its media
    labels_sha256: str
    report_file: str = "import_report.json"
    shards: tuple[ShardInfo, ...]

    @property
    def files(self) -> set[str]:
        """Names of all files of the dataset but dataset.json."""
        return {self.labels_file, self.report_file, *(shard.name for shard in self.shards)}


class Named(NamedTuple):
    """A file named by its digest."""

    name: str
    sha256: str


def write_by_digest(storage: Storage, stem: str, suffix: str, data: bytes) -> Named:
    """Write a file as <stem>-<first 16 digits of its SHA-256><suffix>, so that no other bytes can have its name."""
    sha256 = sha256_hex(data)
    name = f"{stem}-{sha256[:16]}{suffix}"
    storage.write(name, data)
    return Named(name, sha256)


def require_files(storage: Storage, folder: str, names: Iterable[str]) -> None:
    """Raise EnvironmentFault if this process does not see files that workers wrote into a folder."""
    missing = set(names) - {entry.path for entry in storage.list(f"{folder}/")}
    if missing:
        raise EnvironmentFault(
            f"{storage.uri}: {len(missing)} files that workers wrote are missing, such as {min(missing)}; every node "
            "must see the same folder"
        )


def write_shard(storage: Storage, stem: str, table: pa.Table) -> ShardInfo:
    """Write rows of one modality (DATASET_SCHEMA) as a shard; its name begins with `stem`."""
    data = parquet_bytes(table)
    name, sha256 = write_by_digest(storage, f"{SHARDS_FOLDER}/{stem}", ".parquet", data)
    modality = table["modality"][0].as_py()
    return ShardInfo(name=name, modality=modality, rows=len(table), bytes=len(data), sha256=sha256)


def describe(
    rows: pa.Table,
    shards: Sequence[ShardInfo],
    *,
    labels: Named,
    split: SplitInfo,
    terms: Mapping[str, str] | None = None,
    warnings: tuple[str, ...] = (),
) -> DatasetInfo:
    """Content of dataset.json for these rows (LABELS_SCHEMA) and files, with the default name of the report."""
    frame = rows.to_pandas()
    by_modality = {str(modality): own for modality, own in frame.groupby("modality")}
    counts = {modality: _counts(own["split"]) for modality, own in by_modality.items()}
    captioned = frame[frame["caption"] != ""]
    if len(captioned):
        counts["caption"] = _counts(captioned["split"])
    return DatasetInfo(
        schema_version=SCHEMA_VERSION,
        digest=dataset_digest(shard.sha256 for shard in shards),
        counts=counts,
        sources={modality: _counts(own["source"]) for modality, own in by_modality.items()},
        terms=dict(terms or {}),
        labels={
            modality: {axis: _moments(own[axis].to_numpy(np.float64)) for axis in AXES}
            for modality, own in by_modality.items()
        },
        split=split,
        warnings=warnings,
        labels_file=labels.name,
        labels_sha256=labels.sha256,
        shards=tuple(shards),
    )


def _counts(names: Iterable[Any]) -> dict[str, int]:
    return dict(sorted(Counter(str(name) for name in names).items()))


def _moments(values_N: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(getattr(values_N, name)()) for name in ("mean", "std", "min", "max")}


def dataset_digest(shard_digests: Iterable[str]) -> str:
    """SHA-256 over the schema version and the shards' digests, in order."""
    return sha256_hex("\n".join([f"mmva-dataset {SCHEMA_VERSION}", *shard_digests]).encode())


def parquet_bytes(table: pa.Table) -> bytes:
    """Parquet file of a table: equal tables give equal bytes. All but media and embeddings is compressed (zstd)."""
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


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Readable JSON; equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()

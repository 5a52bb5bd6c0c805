"""An imported dataset, opened for reading."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from mmva.errors import CheckFailed, UsageError
from mmva.files import sha256_hex
from mmva.modalities import Modality
from mmva_platform.cluster import quiet_ray_data
from mmva_platform.datasets.schema import DATASET_FILE, SCHEMA_VERSION, DatasetInfo, ShardInfo, read_parquet
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, StorageNotFound, open_storage

if TYPE_CHECKING:
    import ray.data


class ShardItems(NamedTuple):
    """Items of one modality in one shard, in its order; `texts` holds captions and is empty for media."""

    shard: ShardInfo
    ids: tuple[str, ...]
    texts: tuple[str, ...]


class _Versioned(BaseModel):
    schema_version: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset that `mmva data import` has published; `info` is the content of dataset.json."""

    storage: Storage
    info: DatasetInfo

    @classmethod
    def open(cls, uri: str, settings: Settings | None = None) -> Dataset:
        """Open the dataset in a folder.

        Raises UsageError if there is no dataset or it has another schema version, StorageError if it cannot be read.
        """
        storage = open_storage(uri, (settings or Settings()).storage)
        try:
            data = storage.read(DATASET_FILE)
        except StorageNotFound:
            raise UsageError(
                f"{uri}: no dataset there ({DATASET_FILE} is missing); make it with: mmva data import ... --out {uri}"
            ) from None
        try:
            version = _Versioned.model_validate_json(data).schema_version
            if version != SCHEMA_VERSION:
                raise UsageError(
                    f"{uri}: a dataset of schema version {version}, this mmva reads version {SCHEMA_VERSION}; import "
                    "its sources again with another --out"
                )
            info = DatasetInfo.model_validate_json(data)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise UsageError(f"{uri}/{DATASET_FILE}: not a dataset description ({field}: {problem['msg']})") from None
        return cls(storage, info)

    @property
    def uri(self) -> str:
        """Full URI of the dataset."""
        return self.storage.uri

    @property
    def digest(self) -> str:
        """The dataset's version."""
        return self.info.digest

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings that every report about this dataset must repeat, such as the leakage of a split by clip."""
        return self.info.warnings

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        """The shards in order."""
        return self.info.shards

    def labels(self) -> pa.Table:
        """Every row without its media, in shard order (LABELS_SCHEMA); read once.

        Raises CheckFailed if the file is not the published one.
        """
        return self._labels

    def items(self, modality: Modality) -> list[ShardItems]:
        """Shards with items of a modality, and these items.

        A shard of clips also has their captions; such a caption has the id of its clip. Sentences that belong to no
        clip have shards of their own.
        """
        found, start = [], 0
        for shard in self.shards:
            rows = self._labels.slice(start, shard.rows).to_pydict()
            start += shard.rows
            pairs = list(zip(rows["id"], rows["caption"], strict=True))
            if modality == "caption" and shard.modality in {"music", "caption"}:
                pairs = [(item_id, text) for item_id, text in pairs if text]
            elif modality != shard.modality:
                continue
            if pairs:
                texts = tuple(text for _, text in pairs) if modality == "caption" else ()
                found.append(ShardItems(shard, tuple(item_id for item_id, _ in pairs), texts))
        return found

    def read_shard(self, name: str) -> pa.Table:
        """One shard with its media (DATASET_SCHEMA), checked against its digest.

        Raises CheckFailed if its bytes are not the published ones, KeyError if the dataset has no such shard.
        """
        digests = {shard.name: shard.sha256 for shard in self.shards}
        return read_parquet(self._verified(name, digests[name]))

    def to_ray(self) -> ray.data.Dataset:
        """All rows with their media (DATASET_SCHEMA) as a lazy Ray dataset, unordered; connects to Ray."""
        return read_as_ray(self.storage, (shard.name for shard in self.shards))

    @cached_property
    def _labels(self) -> pa.Table:
        return read_parquet(self._verified(self.info.labels_file, self.info.labels_sha256))

    def _verified(self, name: str, sha256: str) -> bytes:
        data = self.storage.read(name)
        if sha256_hex(data) != sha256:
            raise CheckFailed(f"{self.storage.join(name)}: its bytes are not those of {DATASET_FILE}; import again")
        return data


def read_as_ray(storage: Storage, names: Iterable[str]) -> ray.data.Dataset:
    """Exactly these Parquet files of a storage as a lazy Ray dataset."""
    import ray.data

    quiet_ray_data()
    filesystem, root = storage.filesystem()
    return ray.data.read_parquet([f"{root}/{name}" for name in names], filesystem=filesystem)

"""The files of an embedding set: one modality of one dataset, embedded by one encoder.

Layout below the embeddings' root: <modality>-<fingerprint[:16]>/part-<number>-<digest>.parquet, one part for a shard
(columns id and embedding), and embeddings.json, which is written last and only if it is absent; <preset>.json at the
root names the sets of the last run with that preset. Parts are named by their digest, like the shards of a dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.errors import CheckFailed, UsageError
from mmva.files import sha256_hex
from mmva.modalities import MODALITIES, Modality
from mmva_platform.datasets.dataset import Dataset, read_as_ray
from mmva_platform.datasets.schema import parquet_bytes, read_parquet
from mmva_platform.settings import Config, Settings
from mmva_platform.storage import Storage, StorageNotFound, open_storage

if TYPE_CHECKING:
    import ray.data

EMBEDDINGS_FOLDER: Final = "embeddings"  # inside the dataset, unless the user chooses another place
EMBEDDINGS_FILE: Final = "embeddings.json"


class PartInfo(Config):
    """One part: its name inside the folder of the set, rows and digest."""

    name: str
    rows: int
    sha256: str


class EmbeddingsInfo(Config):
    """Content of embeddings.json. `rows` is the sum over the parts."""

    modality: Modality
    fingerprint: str
    spec: dict[str, Any]
    dim: int
    preset: str
    dataset: str
    rows: int
    parts: tuple[PartInfo, ...]


class Pointer(Config):
    """Content of <preset>.json: fingerprint by modality of the sets that the last run with the preset made."""

    dataset: str
    fingerprints: dict[Modality, str]


@dataclass(frozen=True)
class EmbeddingSet:
    """A finished set, opened for reading; `storage` is the root of the embeddings."""

    storage: Storage
    info: EmbeddingsInfo

    @classmethod
    def open(
        cls,
        dataset_uri: str,
        backbones: str,
        modality: Modality,
        settings: Settings | None = None,
        *,
        embeddings: str | None = None,
    ) -> EmbeddingSet:
        """Open one modality's embeddings of a dataset.

        `backbones` is the name of a preset; `embeddings` a URI, if they are not inside the dataset. Raises UsageError
        if the dataset is not embedded with the preset, or has no such modality.
        """
        dataset = Dataset.open(dataset_uri, settings)
        sets = open_sets(dataset, backbones, settings, embeddings=embeddings)
        if modality not in sets:
            raise UsageError(f"{dataset_uri}: has no {modality} items; choose one of {', '.join(sets)}")
        return sets[modality]

    def paths(self) -> list[str]:
        """Paths of the parts inside the storage, in order."""
        return [f"{folder_name(self.info.modality, self.info.fingerprint)}/{part.name}" for part in self.info.parts]

    def read(self, number: int) -> tuple[list[str], NDArray[np.float32]]:
        """Ids and embeddings of a part, float32 [N, D]. Raises CheckFailed if its bytes are not the published ones."""
        path = self.paths()[number]
        data = self.storage.read(path)
        if sha256_hex(data) != self.info.parts[number].sha256:
            raise CheckFailed(f"{self.storage.join(path)}: its bytes are not those of {EMBEDDINGS_FILE}; embed again")
        return read_part(data)

    def to_ray(self) -> ray.data.Dataset:
        """All rows (id and embedding) as a lazy Ray dataset, unordered; connects to Ray."""
        return read_as_ray(self.storage, self.paths())


def open_sets(
    dataset: Dataset,
    backbones: str | Mapping[Modality, str],
    settings: Settings | None = None,
    *,
    embeddings: str | Sequence[str] | None = None,
) -> dict[Modality, EmbeddingSet]:
    """The sets by modality of a preset (by its name), or of the encoders with these fingerprints.

    `embeddings` is their URI, by default inside the dataset; of several URIs, each set comes from the first that has
    it. Raises UsageError if a set does not exist; the message has the command that makes it.
    """
    inside = dataset.storage.join(EMBEDDINGS_FOLDER)
    given = (embeddings,) if isinstance(embeddings, str) else tuple(embeddings or (inside,))
    places = [open_storage(uri, (settings or Settings()).storage) for uri in given]
    name = backbones if isinstance(backbones, str) else "MODEL"
    command = f"mmva embed {dataset.uri} --backbones {name}" + (f" --out {given[0]}" if given[0] != inside else "")
    if isinstance(backbones, str):
        pointers = [pointer for each in places if (pointer := read_pointer(each, backbones)) is not None]
        if not pointers or pointers[0].dataset != dataset.digest:
            raise UsageError(f"{dataset.uri}: not embedded with the preset {backbones!r}; run: {command}")
        backbones = pointers[0].fingerprints
    sets: dict[Modality, EmbeddingSet] = {}
    for modality in MODALITIES:
        if modality not in backbones:
            continue
        fingerprint = backbones[modality]
        found = (_set_in(each, dataset, modality, fingerprint) for each in places)
        if (chosen := next((each for each in found if each is not None), None)) is None:
            raise UsageError(f"{dataset.uri}: no {modality} embeddings by encoder {fingerprint[:16]}; run: {command}")
        sets[modality] = chosen
    return sets


def _set_in(storage: Storage, dataset: Dataset, modality: Modality, fingerprint: str) -> EmbeddingSet | None:
    info = read_info(storage, folder_name(modality, fingerprint))
    if info is None or (info.dataset, info.fingerprint) != (dataset.digest, fingerprint):
        return None
    return EmbeddingSet(storage, info)


def folder_name(modality: Modality, fingerprint: str) -> str:
    """Folder of a set."""
    return f"{modality}-{fingerprint[:16]}"


def pointer_file(preset: str) -> str:
    """Name of a preset's pointer."""
    return f"{preset}.json"


def read_info(storage: Storage, folder: str) -> EmbeddingsInfo | None:
    """Description of a finished set; None if it is not finished."""
    try:
        return EmbeddingsInfo.model_validate_json(storage.read(f"{folder}/{EMBEDDINGS_FILE}"))
    except StorageNotFound:
        return None


def read_pointer(storage: Storage, preset: str) -> Pointer | None:
    """A preset's pointer; None if nothing was embedded with it."""
    try:
        return Pointer.model_validate_json(storage.read(pointer_file(preset)))
    except StorageNotFound:
        return None


def part_bytes(ids: Sequence[str], emb_ND: NDArray[np.float32], key: Mapping[str, str]) -> bytes:
    """Parquet file of a part. Its metadata hold `key`, the part's origin; see part_key."""
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(emb_ND.ravel(), pa.float32()), emb_ND.shape[1])
    table = pa.table({"id": pa.array(ids, pa.string()), "embedding": embedding})
    return parquet_bytes(table.replace_schema_metadata(dict(key)))


def part_key(data: bytes) -> dict[str, str]:
    """The origin of a part; empty if these are not the bytes of a part."""
    try:
        metadata = read_parquet(data, ["id"]).schema.metadata or {}
    except pa.ArrowInvalid:
        return {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def read_part(data: bytes) -> tuple[list[str], NDArray[np.float32]]:
    """Ids and embeddings of a part, float32 [N, D]."""
    table = read_parquet(data).combine_chunks()
    column = table["embedding"].combine_chunks()
    emb_ND = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)
    return table["id"].to_pylist(), emb_ND.astype(np.float32, copy=False)

"""The files of an embedding set: one modality of one dataset through one encoder.

Layout under the embeddings' root: <modality>-<fingerprint[:16]>/part-00000.parquet, one part a shard (columns id and
embedding), then embeddings.json last; <preset>.json at the root names the sets that the preset last gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.modalities import Modality
from mmva_platform.datasets.schema import parquet_bytes, read_parquet
from mmva_platform.settings import Config
from mmva_platform.storage import Storage, StorageNotFound

EMBEDDINGS_FOLDER: Final = "embeddings"  # inside the dataset, unless the user says otherwise
EMBEDDINGS_FILE: Final = "embeddings.json"


class PartInfo(Config):
    """One part: its name inside the set's folder, rows and digest."""

    name: str
    rows: int
    sha256: str


class EmbeddingsInfo(Config):
    """Content of embeddings.json: what was embedded by what. `rows` is the sum over the parts."""

    modality: Modality
    fingerprint: str
    spec: dict[str, Any]
    dim: int
    preset: str
    dataset: str
    rows: int
    parts: tuple[PartInfo, ...]


class Pointer(Config):
    """Content of <preset>.json: fingerprint by modality of the sets that the preset last gave for a dataset."""

    dataset: str
    fingerprints: dict[Modality, str]


def folder_name(modality: Modality, fingerprint: str) -> str:
    """Folder of a set."""
    return f"{modality}-{fingerprint[:16]}"


def pointer_file(preset: str) -> str:
    """Name of a preset's pointer."""
    return f"{preset}.json"


def read_info(storage: Storage, folder: str) -> EmbeddingsInfo | None:
    """Description of a finished set; None while there is none."""
    try:
        return EmbeddingsInfo.model_validate_json(storage.read(f"{folder}/{EMBEDDINGS_FILE}"))
    except StorageNotFound:
        return None


def read_pointer(storage: Storage, preset: str) -> Pointer | None:
    """A preset's pointer; None when it has not been embedded with."""
    try:
        return Pointer.model_validate_json(storage.read(pointer_file(preset)))
    except StorageNotFound:
        return None


def part_bytes(ids: Sequence[str], emb_ND: NDArray[np.float32], key: Mapping[str, str]) -> bytes:
    """Parquet file of a part. `key` (what it was made from) stands in its metadata; see part_key."""
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(emb_ND.ravel(), pa.float32()), emb_ND.shape[1])
    table = pa.table({"id": pa.array(ids, pa.string()), "embedding": embedding})
    return parquet_bytes(table.replace_schema_metadata(dict(key)))


def part_key(data: bytes) -> dict[str, str]:
    """What a part was made from; empty when its bytes say nothing."""
    try:
        metadata = read_parquet(data, ["id"]).schema.metadata or {}
    except pa.ArrowInvalid:
        return {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def read_part(data: bytes) -> tuple[list[str], NDArray[np.float32]]:
    """Ids and embeddings of a part, float32 [N, D]."""
    table = read_parquet(data).combine_chunks()
    column = table["embedding"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    emb_ND = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), column.type.list_size)
    return table["id"].to_pylist(), emb_ND.astype(np.float32, copy=False)

"""The worker that embeds: one part a call, every encoder loaded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.backbones import BackboneSpec
from mmva.errors import CheckFailed, OperationFailed
from mmva.inference.config import default_preprocessing
from mmva.inference.pipeline import Pipeline
from mmva.inference.tables import matrix
from mmva.media.windows import HOP_S, WINDOW_S
from mmva.modalities import Modality
from mmva.predictor import ItemEncoder
from mmva_platform.datasets.embedding_set import PartInfo, folder_name, part_bytes
from mmva_platform.datasets.schema import ShardInfo, read_parquet, sha256_of
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage
from mmva_platform.storage.fetch import folder_fetcher

if TYPE_CHECKING:
    from mmva.backbones import Encoder


@dataclass(frozen=True)
class EncoderLoader:
    """How a process comes by an encoder; picklable, and loads nothing before it is called."""

    fetch: Callable[[str], Path]
    mirror: str | None
    trusted_repos: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> EncoderLoader:
        """Loader with the settings' cache, mirror and trusted repositories."""
        return cls(folder_fetcher(settings), settings.backbone_mirror, settings.trust_remote_code)

    def __call__(self, spec: BackboneSpec) -> Encoder:
        """Load one encoder."""
        from mmva.backbones import load_encoder

        return load_encoder(spec, fetch=self.fetch, mirror=self.mirror, trusted_repos=self.trusted_repos)


@dataclass(frozen=True)
class Part:
    """One part to compute: the items of one shard in its order. Captions bring their texts, media are in the shard."""

    spec: BackboneSpec
    fingerprint: str
    name: str
    shard: ShardInfo
    ids: tuple[str, ...]
    texts: tuple[str, ...] = ()

    @property
    def modality(self) -> Modality:
        """Of its items."""
        return self.spec.modality

    @property
    def path(self) -> str:
        """Where it goes, inside the embeddings' root."""
        return f"{folder_name(self.modality, self.fingerprint)}/{self.name}"

    @property
    def key(self) -> dict[str, str]:
        """What it is made from; a part with another key is not this part."""
        return {"fingerprint": self.fingerprint, "shard_sha256": self.shard.sha256, "windows_s": f"{WINDOW_S}/{HOP_S}"}


class Embedder:
    """Worker: reads a shard, decodes and embeds its items, writes the part whole."""

    def __init__(self, load: EncoderLoader, dataset: Storage, out: Storage, batch_size: int) -> None:
        self._load, self._dataset, self._out, self._batch_size = load, dataset, out, batch_size
        self._encoders: dict[str, Encoder] = {}

    def __call__(self, item: dict[str, Any]) -> tuple[str, PartInfo]:
        """Compute the part under "part"; its path and description."""
        part: Part = item["part"]
        encoder = self._encoder(part)
        read = self._media(part) if part.modality != "caption" else None
        emb_ND = embed_part(part, encoder, read, self._batch_size)
        if not np.isfinite(emb_ND).all():
            raise OperationFailed(
                f"embed: {part.spec.source} gives embeddings that are not finite for {part.shard.name}"
            )
        data = part_bytes(part.ids, emb_ND, part.key)
        self._out.write(part.path, data)
        return part.path, PartInfo(name=part.name, rows=len(part.ids), sha256=sha256_of(data))

    def _encoder(self, part: Part) -> Encoder:
        if part.fingerprint not in self._encoders:
            encoder = self._load(part.spec)
            if encoder.fingerprint != part.fingerprint:
                raise OperationFailed(
                    f"embed: {part.spec.source} is another encoder on this worker than on the driver; "
                    "install the same versions everywhere"
                )
            self._encoders[part.fingerprint] = encoder
        return self._encoders[part.fingerprint]

    def _media(self, part: Part) -> Callable[[int], bytes]:
        data = self._dataset.read(part.shard.name)
        if sha256_of(data) != part.shard.sha256:
            raise CheckFailed(f"{self._dataset.join(part.shard.name)}: its bytes are not those of dataset.json")
        media = read_parquet(data, ["media"])["media"]
        return lambda row: media[row].as_py()


def embed_part(
    part: Part, encoder: ItemEncoder, read: Callable[[int], bytes] | None, batch_size: int
) -> NDArray[np.float32]:
    """Embeddings of a part's items, float32 [N, D], by the same path as in annotation and serving.

    Args:
        part: Its items.
        encoder: Of its modality.
        read: Row -> the bytes of its media; None for captions.
        batch_size: Images, windows or captions embedded at once.

    Raises:
        OperationFailed: If an item does not decode; names it.
        EnvironmentFault: If the encoder fails for every item.
    """
    count, modality = len(part.ids), part.modality
    columns = {
        "id": part.ids,
        "uri": [str(row) for row in range(count)],
        "modality": [modality] * count,
        "caption": pa.array(part.texts if read is None else [None] * count, pa.string()),
    }
    pipeline = Pipeline(
        (modality,),
        lambda _modality: encoder,
        default_preprocessing({modality: {"fingerprint": part.fingerprint}}),
        lambda row, _size, _most: read(int(row)) if read else b"",
        batch_size=batch_size,
        fetch_threads=1,
    )
    embedded = pipeline.embed(pa.table(columns))
    for error in embedded.errors.to_pylist():
        raise OperationFailed(
            f"embed: {modality} {error['id']!r} in {part.shard.name} does not decode here though the import checked "
            f"it ({error['error']}: {error['message']}); are the decoders of this worker the same?"
        )
    return matrix(embedded.rows["embedding"])

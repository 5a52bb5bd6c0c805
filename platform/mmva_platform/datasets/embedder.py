"""The worker that embeds: one part a call, every encoder loaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmva.backbones import BackboneSpec
from mmva.errors import CheckFailed, MediaError, OperationFailed
from mmva.media.windows import HOP_S, WINDOW_S, windows
from mmva.modalities import Modality
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
        if part.modality == "caption":
            emb_ND = encoder.encode(part.texts, self._batch_size)
        else:
            emb_ND = self._embed_media(part, encoder)
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

    def _embed_media(self, part: Part, encoder: Encoder) -> NDArray[np.float32]:
        data = self._dataset.read(part.shard.name)
        if sha256_of(data) != part.shard.sha256:
            raise CheckFailed(f"{self._dataset.join(part.shard.name)}: its bytes are not those of dataset.json")
        media = read_parquet(data, ["media"])["media"]
        emb_ND = np.empty((len(part.ids), encoder.dim), np.float32)
        for start in range(0, len(part.ids), self._batch_size):
            stop = min(start + self._batch_size, len(part.ids))
            files = [media[row].as_py() for row in range(start, stop)]
            items = [_decoded(part, part.ids[start + i], file, encoder) for i, file in enumerate(files)]
            emb_ND[start:stop] = embed_items(encoder, items, self._batch_size)
        return emb_ND


def embed_items(encoder: Encoder, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
    """Embeddings of decoded items, float32 [N, D]; long music is the mean over its windows."""
    if encoder.sample_rate is None:
        return encoder.encode(items, batch_size)
    pieces = [windows(samples, encoder.sample_rate, WINDOW_S, HOP_S)[1] for samples in items]
    emb_WD = encoder.encode([window for item in pieces for window in item], batch_size)
    ends = np.cumsum([len(item) for item in pieces])
    return np.stack([rows.mean(axis=0) for rows in np.split(emb_WD, ends[:-1])])


def _decoded(part: Part, item_id: str, data: bytes, encoder: Encoder) -> Any:
    from mmva.media.audio import decode_audio
    from mmva.media.images import decode_image

    try:
        if part.modality == "image":
            return decode_image(data)
        assert encoder.sample_rate is not None
        return decode_audio(data, encoder.sample_rate)
    except MediaError as error:
        raise OperationFailed(
            f"embed: {part.modality} {item_id!r} in {part.shard.name} does not decode here though the import checked "
            f"it ({error.code}: {error}); are the decoders of this worker the same?"
        ) from error

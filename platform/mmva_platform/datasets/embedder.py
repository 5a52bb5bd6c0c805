"""The worker that embeds: one part a call; each encoder is loaded once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mmva.backbones import BackboneSpec
from mmva.errors import CheckFailed, EnvironmentFault, MediaError, OperationFailed
from mmva.media.windows import HOP_S, WINDOW_S, windows
from mmva.modalities import Modality
from mmva_platform import bulk
from mmva_platform.datasets.embedding_set import PartInfo, folder_name, part_bytes, part_key
from mmva_platform.datasets.isolated import Isolated
from mmva_platform.datasets.schema import ShardInfo, read_parquet, sha256_of, write_by_digest
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage
from mmva_platform.storage.fetch import folder_fetcher

if TYPE_CHECKING:
    from mmva.backbones import Encoder

logger = logging.getLogger(__name__)

Engine = Literal["auto", "torch", "cuda"]
_LOAD_TIMEOUT_S: Final = 300.0  # of an encoder, in a process of its own on a busy machine
ENGINES: Final[tuple[Engine, ...]] = ("auto", "torch", "cuda")


@dataclass(frozen=True)
class EncoderLoader:
    """Loads encoders as the settings say; picklable, and loads nothing before it is called."""

    fetch: Callable[[str], Path]
    mirror: str | None
    trusted_repos: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> EncoderLoader:
        """Loader with the cache, mirror and trusted repositories of the settings."""
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
    number: int
    shard: ShardInfo
    ids: tuple[str, ...]
    texts: tuple[str, ...] = ()

    @property
    def modality(self) -> Modality:
        """Of its items."""
        return self.spec.modality

    @property
    def stem(self) -> str:
        """Path inside the root of the embeddings, without digest and suffix."""
        return f"{folder_name(self.modality, self.fingerprint)}/part-{self.number:05d}"

    @property
    def key(self) -> dict[str, str]:
        """What it is made from; a file with another key is not this part."""
        return {"fingerprint": self.fingerprint, "shard_sha256": self.shard.sha256, "windows_s": f"{WINDOW_S}/{HOP_S}"}


class Embedder:
    """Worker: reads a shard, decodes and embeds its items, and writes the part."""

    def __init__(
        self,
        load: EncoderLoader,
        dataset: Storage,
        out: Storage,
        *,
        batch_size: int,
        engine: Engine,
        item_timeout_s: float,
    ) -> None:
        """Load nothing yet.

        Args:
            load: Gives the encoders.
            dataset: The dataset.
            out: Root of the embeddings.
            batch_size: Items that are decoded and embedded together.
            engine: "torch" for the CPU, "cuda", or "auto" for CUDA if torch sees a GPU.
            item_timeout_s: Limit for an item in a process of its own.
        """
        self._load, self._dataset, self._out = load, dataset, out
        self._batch_size, self._engine, self._item_timeout_s = batch_size, engine, item_timeout_s
        self._encoders: dict[str, Encoder] = {}

    def __call__(self, shard: dict[str, Any], attempt: bulk.Attempt) -> tuple[str, PartInfo]:
        """Stem and description of the Part under "part", which is computed unless an earlier run has written it.

        Raises:
            OperationFailed: If an item cannot be embedded; the message names it.
            CheckFailed: If the shard is not the published one.
            EnvironmentFault: If the engine is "cuda" and torch sees no GPU.
        """
        part: Part = shard["part"]
        attempt.step("find")
        found = _written(self._out, part)
        if found is not None:
            return part.stem, found
        emb_ND = self._embed(part, attempt)
        if not np.isfinite(emb_ND).all():
            raise OperationFailed(
                f"embed: {part.spec.source} gives embeddings that are not finite for {part.shard.name}"
            )
        attempt.step("write", len(part.ids))
        path, sha256 = write_by_digest(self._out, part.stem, ".parquet", part_bytes(part.ids, emb_ND, part.key))
        return part.stem, PartInfo(name=path.rpartition("/")[2], rows=len(part.ids), sha256=sha256)

    def _embed(self, part: Part, attempt: bulk.Attempt) -> NDArray[np.float32]:
        attempt.step("fetch")
        items = part.texts if part.modality == "caption" else self._media(part)
        if attempt.deaths >= bulk.ISOLATE_AFTER:
            return self._embed_isolated(part, items, attempt)
        attempt.step("load")
        if part.fingerprint not in self._encoders:
            self._encoders[part.fingerprint] = _load_encoder(self._load, part, self._engine)
        encoder = self._encoders[part.fingerprint]
        rows_ND = []
        for start in range(0, len(items), self._batch_size):
            batch = range(start, min(start + self._batch_size, len(items)))
            inputs = []
            for row in batch:
                attempt.step("decode", row)
                inputs.append(_input(part, part.ids[row], items[row], encoder))
            attempt.step("infer")
            rows_ND.append(embed_items(encoder, inputs, self._batch_size))
        return np.concatenate(rows_ND)

    def _embed_isolated(self, part: Part, items: Sequence[Any], attempt: bulk.Attempt) -> NDArray[np.float32]:
        """Item by item in a process that may die: the shard has cost workers before."""
        rows_ND = []
        make = partial(_one_by_one, self._load, part, self._engine)
        with Isolated(make, self._item_timeout_s, _LOAD_TIMEOUT_S) as embed:
            for row, item_id in enumerate(part.ids):
                attempt.step("load", row)  # a step without a limit: the process has its own
                try:
                    rows_ND.append(embed((item_id, items[row])))
                except MediaError as error:
                    raise OperationFailed(
                        f"embed: {part.modality} {item_id!r} in {part.shard.name}: {error.code} ({error})"
                    ) from error
        return np.concatenate(rows_ND)

    def _media(self, part: Part) -> list[bytes]:
        data = self._dataset.read(part.shard.name)
        if sha256_of(data) != part.shard.sha256:
            raise CheckFailed(f"{self._dataset.join(part.shard.name)}: its bytes are not those of dataset.json")
        return read_parquet(data, ["media"])["media"].to_pylist()


def _written(out: Storage, part: Part) -> PartInfo | None:
    """The part as an earlier run has written it, whole and from the same shard by the same encoder."""
    for entry in out.list(f"{part.stem}-"):
        data = out.read(entry.path)
        name, sha256 = entry.path.rpartition("/")[2], sha256_of(data)
        if name.endswith(f"-{sha256[:16]}.parquet") and part_key(data) == part.key:
            return PartInfo(name=name, rows=len(part.ids), sha256=sha256)
    return None


def _load_encoder(load: EncoderLoader, part: Part, engine: Engine) -> Encoder:
    encoder = load(part.spec)
    if encoder.fingerprint != part.fingerprint:
        raise OperationFailed(
            f"embed: {part.spec.source} is another encoder on this worker than on the driver; "
            "install the same versions everywhere"
        )
    return encoder if engine == "torch" else on_gpu(encoder, required=engine == "cuda")


def on_gpu(encoder: Encoder, *, required: bool) -> Encoder:
    """Move an encoder to this process's GPU, in true float32.

    Raises:
        EnvironmentFault: If torch sees no GPU and `required` is True; otherwise the encoder stays on the CPU.
    """
    import torch

    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False  # on by default, and not as exact
        return encoder.to("cuda")
    if required:
        raise EnvironmentFault("embed: torch sees no GPU on this worker; use --engine torch, or repair its driver")
    logger.warning("embed: torch sees no GPU on this worker; it uses the CPU")
    return encoder


def _one_by_one(load: EncoderLoader, part: Part, engine: Engine) -> Callable[[tuple[str, Any]], NDArray[np.float32]]:
    """A function from the id and the text or file of one item to its embedding, float32 [1, D]."""
    encoder = _load_encoder(load, part, engine)
    return lambda item: embed_items(encoder, [_input(part, *item, encoder)])


def _input(part: Part, item_id: str, item: Any, encoder: Encoder) -> Any:
    """What the encoder reads: a caption as it is, a file decoded."""
    return item if part.modality == "caption" else _decoded(part, item_id, item, encoder)


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

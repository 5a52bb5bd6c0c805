"""The worker that embeds: one part for each call; each encoder is loaded once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.backbones import BackboneSpec
from mmva.errors import CheckFailed, MediaError, OperationFailed
from mmva.files import sha256_hex
from mmva.inference.config import default_preprocessing
from mmva.inference.isolation import Isolated, report_step
from mmva.inference.pipeline import Pipeline
from mmva.inference.tables import matrix
from mmva.media.windows import HOP_S, WINDOW_S
from mmva.modalities import Modality
from mmva.models.predictor import ItemEncoder
from mmva_platform import bulk
from mmva_platform.datasets.embedding.files import PartInfo, folder_name, part_bytes, part_key
from mmva_platform.datasets.schema import ShardInfo, read_parquet, write_by_digest
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage
from mmva_platform.storage.base import retry_while_unavailable
from mmva_platform.storage.fetch import folder_fetcher

if TYPE_CHECKING:
    from mmva.backbones import Encoder

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
Engine = Literal["auto", "torch", "cuda"]
_LOAD_TIMEOUT_S: Final = 300.0  # of an encoder, in a process of its own on a busy machine
_DECODE_THREADS: Final = 4  # decode and prepare while the GPU computes
ENGINES: Final[tuple[Engine, ...]] = ("auto", "torch", "cuda")


@dataclass(frozen=True)
class EncoderLoader:
    """Loads encoders by the settings; picklable, and loads nothing before it is called."""

    fetch: Callable[[str], Path]
    mirror: str | None
    trusted_repos: tuple[str, ...]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Loader with the cache, mirror and trusted repositories of the settings."""
        return cls(folder_fetcher(settings), settings.backbone_mirror, settings.trust_remote_code)

    def __call__(self, spec: BackboneSpec) -> Encoder:
        """Load one encoder."""
        from mmva.backbones import load_encoder  # imports torch, which workers with ONNX Runtime do not need

        return load_encoder(spec, fetch=self.fetch, mirror=self.mirror, trusted_repos=self.trusted_repos)


@dataclass(frozen=True)
class Part:
    """One part to compute: the items of one shard in its order. `texts` are captions; media are in the shard."""

    spec: BackboneSpec
    fingerprint: str
    number: int
    shard: ShardInfo
    ids: tuple[str, ...]
    texts: tuple[str, ...] = ()

    @property
    def modality(self) -> Modality:
        """The modality of its items."""
        return self.spec.modality

    @property
    def stem(self) -> str:
        """Path below the embeddings' root, without digest and suffix."""
        return f"{folder_name(self.modality, self.fingerprint)}/part-{self.number:05d}"

    @property
    def key(self) -> dict[str, str]:
        """Its origin; a file with another key is not this part."""
        return {"fingerprint": self.fingerprint, "shard_sha256": self.shard.sha256, "windows_s": f"{WINDOW_S}/{HOP_S}"}


class Embedder:
    """Worker: reads a shard, decodes and embeds its items, and writes the part."""

    def __init__(
        self,
        load: EncoderLoader,
        dataset: Storage,
        out: Storage,
        settings: Settings,
        *,
        batch_size: int,
        engine: Engine,
    ) -> None:
        """Load nothing yet. `dataset` is the folder of the dataset, `out` the root of the embeddings.

        `engine` is "torch" for the CPU, "cuda", or "auto" for CUDA if torch sees a GPU. `batch_size` counts images,
        windows or captions.
        """
        self._load, self._dataset, self._out, self._settings = load, dataset, out, settings
        self._batch_size, self._engine = batch_size, engine
        self._encoders: dict[str, ItemEncoder] = {}

    def __call__(self, shard: dict[str, Any], attempt: bulk.Attempt) -> tuple[str, PartInfo]:
        """Stem and description of the Part under "part"; computes it unless an earlier run has written it.

        Raises OperationFailed, with the item, if one cannot be embedded, CheckFailed if the shard is not the published
        one, EnvironmentFault if the encoder fails for every item.
        """
        part: Part = shard["part"]
        attempt.step("fetch")
        found = self._waiting(lambda: _written(self._out, part))
        if found is not None:
            return part.stem, found
        emb_ND = self._embed(part, attempt)
        if not np.isfinite(emb_ND).all():
            raise OperationFailed(f"embed: {part.spec.source} gives infinite or NaN embeddings for {part.shard.name}")
        attempt.step("fetch", len(part.ids))  # storage has its own time limits
        data = part_bytes(part.ids, emb_ND, part.key)
        path, sha256 = self._waiting(lambda: write_by_digest(self._out, part.stem, ".parquet", data))
        return part.stem, PartInfo(name=path.rpartition("/")[2], rows=len(part.ids), sha256=sha256)

    def _embed(self, part: Part, attempt: bulk.Attempt) -> NDArray[np.float32]:
        read = None if part.modality == "caption" else self._media(part)
        if attempt.deaths >= bulk.ISOLATE_AFTER:
            return self._embed_isolated(part, read, attempt)
        attempt.step("load")
        if part.fingerprint not in self._encoders:
            self._encoders[part.fingerprint] = _load_encoder(self._load, part, self._engine)
        encoder, at_fault = self._encoders[part.fingerprint], attempt.items_at_fault
        return embed_part(part, encoder, read, self._batch_size, items_at_fault=at_fault, on_progress=attempt.step)

    def _embed_isolated(
        self, part: Part, read: Callable[[int], bytes] | None, attempt: bulk.Attempt
    ) -> NDArray[np.float32]:
        """Embed item by item in a child process, because the shard has killed workers."""
        rows_ND = []
        make = partial(_one_by_one, self._load, part, self._engine)
        with Isolated(make, self._settings.annotation.item_timeout_s, _LOAD_TIMEOUT_S) as embed:
            for row, item_id in enumerate(part.ids):
                attempt.step("load", row)  # a step without a time limit: the child process has its own
                try:
                    rows_ND.append(embed((row, read(row) if read else b"")))
                except MediaError as error:
                    raise OperationFailed(
                        f"embed: {part.modality} {item_id!r} in {part.shard.name}: {error.code} ({error})"
                    ) from error
        return np.concatenate(rows_ND)

    def _media(self, part: Part) -> Callable[[int], bytes]:
        data = self._waiting(lambda: self._dataset.read(part.shard.name))
        if sha256_hex(data) != part.shard.sha256:
            raise CheckFailed(f"{self._dataset.join(part.shard.name)}: its bytes are not those of dataset.json")
        media = read_parquet(data, ["media"])["media"]
        return lambda row: media[row].as_py()

    def _waiting(self, call: Callable[[], ResultT]) -> ResultT:
        """Repeat a call while storage is unavailable: an outage must not discard finished embeddings."""
        return retry_while_unavailable(call, self._settings.storage.patience_s, "embed")


def _written(out: Storage, part: Part) -> PartInfo | None:
    """The complete part of an earlier run, from the same shard and by the same encoder; else None."""
    for entry in out.list(f"{part.stem}-"):
        data = out.read(entry.path)
        name, sha256 = entry.path.rpartition("/")[2], sha256_hex(data)
        if name.endswith(f"-{sha256[:16]}.parquet") and part_key(data) == part.key:
            return PartInfo(name=name, rows=len(part.ids), sha256=sha256)
    return None


def _load_encoder(load: EncoderLoader, part: Part, engine: Engine) -> ItemEncoder:
    encoder = load(part.spec)
    if encoder.fingerprint != part.fingerprint:
        raise OperationFailed(
            f"embed: the encoder {part.spec.source} differs between this worker and the driver; install the same "
            "versions everywhere"
        )
    return encoder if engine == "torch" else on_gpu(encoder, required=engine == "cuda")


def on_gpu(encoder: Encoder, *, required: bool) -> ItemEncoder:
    """Put an encoder on this process's GPU; if torch sees none and none is required, return the encoder unchanged.

    Raises OperationFailed if torch sees no GPU and `required` is True.
    """
    import torch

    from mmva.engines.cuda import CudaEncoder

    if required or torch.cuda.is_available():
        return CudaEncoder(encoder)
    logger.warning("embed: torch sees no GPU on this worker; it uses the CPU")
    return encoder


def _one_by_one(load: EncoderLoader, part: Part, engine: Engine) -> Callable[[tuple[int, bytes]], NDArray[np.float32]]:
    """Return a function from the row and the media of one item of a part to its embedding, float32 [1, D]."""
    encoder = _load_encoder(load, part, engine)

    def embed(item: tuple[int, bytes]) -> NDArray[np.float32]:
        row, media = item
        one = slice(row, row + 1)
        single = replace(part, ids=part.ids[one], texts=part.texts[one])
        read = None if part.modality == "caption" else lambda _row: media
        return embed_part(single, encoder, read, batch_size=16, items_at_fault=True, on_progress=report_step)

    return embed


def embed_part(
    part: Part,
    encoder: ItemEncoder,
    read: Callable[[int], bytes] | None,
    batch_size: int,
    *,
    items_at_fault: bool = False,
    on_progress: Callable[[str], None] = lambda _stage: None,
) -> NDArray[np.float32]:
    """Embeddings of a part's items, float32 [N, D], by the same path as in annotation and serving.

    `read` gives the bytes of a row's media; None for captions. `batch_size`, `items_at_fault` and `on_progress`: see
    Pipeline. Raises OperationFailed, with the item, if one does not decode, EnvironmentFault if the encoder fails for
    every item.
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
        decode_threads=_DECODE_THREADS if hasattr(encoder, "launch") else 0,
        on_progress=on_progress,
    )
    embedded = pipeline.embed(pa.table(columns), items_at_fault=items_at_fault)
    for error in embedded.errors.to_pylist():
        raise OperationFailed(
            f"embed: {modality} {error['id']!r} in {part.shard.name} does not decode now, but did in the import "
            f"({error['error']}: {error['message']}); are the decoders of this worker the same?"
        )
    return matrix(embedded.rows["embedding"])

"""One shard's items through a model: fetch, decode, embed, predict. Every item ends in one of two rows.

What is wrong with an item stays with that item: errors are caught per item, and a batch that fails is run again one by
one. Only storage that is away for everybody (after all retries) stops the shard; nothing of it is committed then.
Music longer than a window is cut into overlapping windows; its point is the mean of theirs, its embedding likewise.

Shapes: W windows of an item (1 for images and captions), D the embedding's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.affect import mood
from mmva.errors import MediaError, UsageError
from mmva.intervals import interval_bounds
from mmva.media.audio import decode_audio
from mmva.media.captions import clean_caption
from mmva.media.images import decode_image
from mmva.media.limits import Limits
from mmva.media.windows import windows
from mmva.modalities import AXES, MODALITIES
from mmva_platform.annotation.commit import ShardResult
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, sha256_hex
from mmva_platform.storage import StorageDenied, StorageError, StorageNotFound, StorageUnavailable

if TYPE_CHECKING:
    from mmva.model import MMVA

Row = dict[str, Any]
Fetch = Callable[[str, int | None, int], bytes]

_BATCH_PIXELS: Final = 64_000_000  # decoded images that wait for a batch, at most some 200 MB
_MESSAGE_CHARACTERS: Final = 500


@dataclass
class _Work:
    """An item on its way."""

    row: Row
    sha256: str | None = None
    duration_s: float | None = None
    starts_s: Sequence[float] = (0.0,)
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)
    error: MediaError | None = None

    @property
    def modality(self) -> str | None:
        modality: str | None = self.row["modality"]
        return modality


class Annotator:
    """Annotates shards of a plan with a loaded model; the same shard always gives the same rows."""

    def __init__(
        self, model: MMVA, plan: Plan, fetch: Fetch, *, batch_size: int = 16, limits: Limits | None = None
    ) -> None:
        """Bind a model to a plan.

        Args:
            model: With its encoders.
            plan: Names the run and the windows.
            fetch: (URI, known size or None, largest size) -> bytes; raises StorageError, UsageError or MediaError.
            batch_size: Images, windows or captions embedded at once; results do not depend on it.
            limits: What an item may ask for.
        """
        self._model, self._plan, self._fetch = model, plan, fetch
        self._batch_size, self._limits = batch_size, limits or Limits()

    def annotate(self, shard: str, items: pa.Table) -> ShardResult:
        """Annotate a shard's items (ITEM_SCHEMA); rows stand in the items' order.

        Raises:
            StorageUnavailable: If storage does not answer; no fault of the item.
        """
        works = [_Work(row) for row in items.to_pylist()]
        for modality, group in groupby(works, key=lambda work: work.modality):
            self._embed(modality, group)
        ok: list[Row] = []
        quarantined: list[Row] = []
        for work in works:
            try:
                if work.error is not None:
                    raise work.error
                ok.append(self._annotation(work, shard))
            except MediaError as error:
                quarantined.append(self._quarantine(work, error, shard))
        return ShardResult(
            pa.Table.from_pylist(ok, schema=ANNOTATION_SCHEMA),
            pa.Table.from_pylist(quarantined, schema=QUARANTINE_SCHEMA),
            work={"media": len(ok), "quarantined": len(quarantined)},
        )

    def _embed(self, modality: str | None, works: Iterable[_Work]) -> None:
        """Fill in the works' embeddings or errors; batches reach across items."""
        batch: list[tuple[_Work, Any]] = []
        pixels = 0
        for work in works:
            for unit in self._units(work):
                batch.append((work, unit))
                pixels += unit.width * unit.height if modality == "image" else 0
                if len(batch) >= self._batch_size or pixels >= _BATCH_PIXELS:
                    self._flush(modality, batch)
                    batch, pixels = [], 0
        self._flush(modality, batch)

    def _flush(self, modality: str | None, batch: Sequence[tuple[_Work, Any]]) -> None:
        if not batch:
            return
        assert modality is not None
        try:
            emb_BD = self._model.embed(modality, [unit for _, unit in batch], batch_size=self._batch_size)
        except Exception as error:  # noqa: BLE001 - an item's error must not cost its neighbours
            if len(batch) > 1:
                for single in batch:
                    self._flush(modality, [single])
            else:
                batch[0][0].error = _as_media_error(error, "infer")
            return
        for (work, _), emb_D in zip(batch, emb_BD, strict=True):
            work.embeddings.append(emb_D)

    def _units(self, work: _Work) -> Sequence[Any]:
        """What the encoder sees of an item: one image, one text, or the windows of its music; none after an error."""
        try:
            return self._decoded(work)
        except StorageUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - decoders meet bytes that nobody foresaw
            work.error = _as_media_error(error, "decode")
            return ()

    def _decoded(self, work: _Work) -> Sequence[Any]:
        if work.modality not in MODALITIES:
            known = ", ".join(MODALITIES)
            raise MediaError("unknown-modality", f"modality {work.modality!r} is none of {known}", stage="catalog")
        if work.modality not in self._model.dims:
            raise MediaError("no-tower", f"this model has no {work.modality} tower", stage="catalog")
        preprocessing = self._plan.preprocessing
        data = self._bytes(work.row)
        work.sha256 = sha256_hex(data)
        if work.modality == "caption":
            return [clean_caption(data, self._limits)]
        if work.modality == "image":
            return [decode_image(data, self._limits, at_least=preprocessing.short_side)]
        sample_rate = self._model.encoder("music").sample_rate
        assert sample_rate is not None
        samples_T = decode_audio(data, sample_rate, self._limits)
        work.duration_s = len(samples_T) / sample_rate
        starts_s, pieces = windows(samples_T, sample_rate, preprocessing.window_s, preprocessing.hop_s)
        work.starts_s = [float(start) for start in starts_s]
        return pieces

    def _bytes(self, row: Row) -> bytes:
        if row["caption"] is not None:
            return str(row["caption"]).encode()
        if row["uri"] is None:
            raise MediaError("no-media", "the row has neither a uri nor, for captions, a text", stage="catalog")
        try:
            return self._fetch(row["uri"], row["bytes"], self._limits.max_bytes)
        except StorageUnavailable:
            raise
        except StorageNotFound as error:
            raise MediaError("not-found", str(error), stage="fetch") from None
        except StorageDenied as error:
            raise MediaError("access-denied", str(error), stage="fetch") from None
        except (StorageError, UsageError) as error:
            raise MediaError("unreadable", str(error), stage="fetch") from None

    def _annotation(self, work: _Work, shard: str) -> Row:
        modality = str(work.modality)
        emb_WD = np.stack(work.embeddings)
        va_W2 = self._model.predict_embeddings(modality, emb_WD)
        if not (np.isfinite(va_W2).all() and np.isfinite(emb_WD).all()):
            raise MediaError("non-finite", "the model gave NaN or infinite values", stage="infer")
        va_2 = va_W2.mean(axis=0, dtype=np.float64)
        plan = self._plan
        return {
            "id": work.row["id"],
            "uri": work.row["uri"],
            "modality": modality,
            "valence": va_2[0],
            "arousal": va_2[1],
            **self._interval(modality, va_2),
            "embedding": emb_WD.mean(axis=0, dtype=np.float64).astype(np.float32),
            "mood": str(mood(va_2)),
            "duration_s": work.duration_s,
            "windows": _curve(work.starts_s, va_W2) if len(va_W2) > 1 else None,
            "sha256": work.sha256,
            "model_name": plan.model.name,
            "model_version": plan.model.version,
            "model_digest": plan.model.digest,
            "run_id": plan.run_id,
            "shard": shard,
            "annotated_at": plan.created_at,
        }

    def _interval(self, modality: str, va_2: NDArray[np.float64]) -> Row:
        half_width = self._model.intervals.get(modality)
        if half_width is None:
            return {f"{axis}_{side}": None for axis in AXES for side in ("low", "high")}
        low_12, high_12 = interval_bounds(va_2[None], half_width)
        return {
            f"{axis}_{side}": bound_12[0, index]
            for index, axis in enumerate(AXES)
            for side, bound_12 in (("low", low_12), ("high", high_12))
        }

    def _quarantine(self, work: _Work, error: MediaError, shard: str) -> Row:
        return {
            "id": work.row["id"],
            "uri": work.row["uri"],
            "modality": work.modality,
            "stage": error.stage,
            "error": error.code,
            "message": " ".join(str(error).split())[:_MESSAGE_CHARACTERS],
            "sha256": work.sha256,
            "attempts": self._plan.generation,
            "run_id": self._plan.run_id,
            "shard": shard,
        }


def _curve(starts_s: Sequence[float], va_W2: NDArray[np.float32]) -> list[Row]:
    return [
        {"start_s": start, "valence": valence, "arousal": arousal}
        for start, (valence, arousal) in zip(starts_s, va_W2, strict=True)
    ]


def _as_media_error(error: Exception, stage: str) -> MediaError:
    """The error as it is, or one that says what nobody foresaw."""
    if isinstance(error, MediaError):
        return error
    return MediaError("unexpected-error", f"{type(error).__name__}: {error}", stage=stage)

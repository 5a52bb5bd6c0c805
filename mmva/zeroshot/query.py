"""One item, as a caller has it, to its point in the plane: decoded, cut and averaged as an annotation's items are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmva.errors import MediaError, UsageError
from mmva.media.audio import stream_audio
from mmva.media.captions import clean_caption
from mmva.media.images import decode_image
from mmva.media.limits import Limits
from mmva.media.windows import HOP_S, WINDOW_S, stream_windows
from mmva.modalities import MODALITIES

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva.predictor import Predictor

_BATCH = 16


def query_point(
    model: MMVA | Predictor, modality: str, data: bytes | str, limits: Limits | None = None
) -> NDArray[np.float64]:
    """VA point [2] in [0, 1] of one image, piece of music or caption.

    Args:
        model: With the encoder of this modality.
        modality: "image", "music" or "caption".
        data: The encoded file; of a caption its text, or that as UTF-8.
        limits: What the item may ask for; the defaults if None.

    Raises:
        UsageError: If the model has no such tower.
        MediaError: What is wrong with the item.
    """
    if modality not in MODALITIES:
        raise UsageError(f"modality {modality!r}: a query is one of {', '.join(MODALITIES)}")
    if modality not in model.dims:
        raise UsageError(f"this model has no {modality!r} tower; it has {', '.join(model.dims)}")
    emb_D = _embedding(model, modality, data, limits or Limits())
    va_2 = np.asarray(model.predict_embeddings(modality, emb_D[None])[0], np.float64)
    if not np.isfinite(va_2).all():
        raise MediaError("non-finite", "the model gave NaN or infinite values", stage="infer")
    return va_2


def _embedding(model: MMVA | Predictor, modality: str, data: bytes | str, limits: Limits) -> NDArray[np.float32]:
    """The item's embedding [D]; of music the mean over its windows, which are embedded as they are decoded."""
    if modality == "caption":
        return model.embed("caption", [clean_caption(data, limits)])[0]
    assert isinstance(data, bytes), f"{modality} data is bytes"
    if modality == "image":
        return model.embed("image", [decode_image(data, limits)])[0]
    rate = model.encoder("music").sample_rate
    assert rate is not None
    embeddings: list[NDArray[np.float32]] = []
    batch: list[Any] = []
    for _, samples_T in stream_windows(stream_audio(data, rate, limits), rate, WINDOW_S, HOP_S):
        batch.append(samples_T)
        if len(batch) == _BATCH:
            embeddings.append(model.embed("music", batch, batch_size=_BATCH))
            batch = []
    if batch:
        embeddings.append(model.embed("music", batch, batch_size=_BATCH))
    return np.concatenate(embeddings).mean(axis=0, dtype=np.float64).astype(np.float32)

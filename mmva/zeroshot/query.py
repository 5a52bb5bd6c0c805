"""Predict the VA point of one item, by the same path as in an annotation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.errors import MediaError, UsageError
from mmva.inference.config import default_preprocessing
from mmva.inference.heads import predict
from mmva.inference.pipeline import Pipeline
from mmva.modalities import MODALITIES

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva.models.predictor import Predictor


def query_point(model: MMVA | Predictor, modality: str, data: bytes | str) -> NDArray[np.float64]:
    """VA point [2] in [0, 1] of an image or a piece of music (encoded), or of a caption (text or UTF-8).

    Raises UsageError if the model has no such tower, MediaError if the item is unusable.
    """
    if modality not in MODALITIES:
        raise UsageError(f"modality {modality!r}: use one of {', '.join(MODALITIES)} for a query")
    if modality not in model.dims:
        raise UsageError(f"this model has no {modality!r} tower; it has {', '.join(model.dims)}")
    encoded = data.encode(errors="replace") if isinstance(data, str) else data
    pipeline = Pipeline(model.dims, model.encoder, default_preprocessing(model.backbones), lambda *_: encoded)
    item = pa.table({"id": ["query"], "uri": ["query"], "modality": [modality]})
    predicted = predict(model, pipeline.embed(item, items_at_fault=True))
    for error in predicted.errors.to_pylist():
        raise MediaError(error["error"], error["message"], stage=error["stage"])
    (row,) = predicted.rows.select(["valence", "arousal"]).to_pylist()
    return np.array([row["valence"], row["arousal"]], np.float64)

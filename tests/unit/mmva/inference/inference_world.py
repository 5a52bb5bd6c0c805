"""A model whose results can be foretold, and small media of every kind, for the tests of inference."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import av
import numpy as np
import pyarrow as pa
import soundfile
from PIL import Image

from mmva.inference.config import Preprocessing
from mmva_platform.annotation.plan.plan import CatalogInfo, ModelInfo, Plan
from mmva_platform.annotation.plan.spool import as_new
from mmva_platform.annotation.schema import ANNOTATION_VERSION, CATALOG_SCHEMA

RATE = 8000
PLAN = Plan(
    annotation_version=ANNOTATION_VERSION,
    run_id="run",
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    model=ModelInfo(name="mmva", version="3", digest="d" * 64),
    preprocessing=Preprocessing(fingerprints={}, window_s=2.0, hop_s=1.0, short_side=224),
    catalog=CatalogInfo(uri="/c", items=1, by_modality={}, skipped={}, duplicates=0, duplicate_ids=()),
    engines={},
    version=0,
    kind="annotate",
    command=(),
    keep_windows=True,
    parts=(),
)


class FakeModel:
    """The mean of an item is its embedding, and its point: what comes out can be foretold."""

    dims = {"image": 2, "music": 2, "caption": 2}  # noqa: RUF012 - a stand-in
    intervals = {"image": {"valence": 0.1, "arousal": 0.7}}  # noqa: RUF012

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.heads: list[tuple[str, int]] = []
        self.bent = False

    def encoder(self, modality: str) -> FakeEncoder:
        return FakeEncoder(self, modality)

    def embed(self, modality: str, items: list[Any]) -> np.ndarray:
        self.batches.append((modality, len(items)))
        return np.stack([self._value(item) for item in items]).astype(np.float32)

    def predict_embeddings(self, modality: str, emb_ND: np.ndarray) -> np.ndarray:
        self.heads.append((modality, len(emb_ND)))
        return np.asarray(emb_ND**2 if self.bent else emb_ND)

    def _value(self, item: Any) -> np.ndarray:
        if isinstance(item, str):
            if "poison" in item:
                raise RuntimeError("the encoder\nchokes")
            return np.array([np.nan if "nan" in item else 0.25, 0.75])
        return np.full(2, np.asarray(item, np.float64).mean() / (255 if isinstance(item, Image.Image) else 1))


class FakeEncoder:
    """Embeds as its model says."""

    fingerprint, dim, sample_rate = "f", 2, RATE

    def __init__(self, model: FakeModel, modality: str) -> None:
        self._model, self._modality = model, modality

    def encode(self, items: Sequence[Any], batch_size: int = 16) -> np.ndarray:
        assert len(items) <= batch_size
        return self._model.embed(self._modality, list(items))


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seconds: float, level: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(round(seconds * RATE), level, np.float32), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def row(name: str, modality: str | None, caption: str | None = None, uri: str | None = "here") -> dict[str, Any]:
    return {"id": name, "uri": name if uri else None, "modality": modality, "caption": caption, "bytes": None}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return as_new(pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA))


def film(seconds: int, *, sound: bool) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        pictures = output.add_stream("mpeg4", rate=5)
        pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
        tone = output.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for _ in range(5 * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 102, np.uint8), format="rgb24")
            output.mux(pictures.encode(frame))
        output.mux(pictures.encode(None))
        if tone:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, seconds * RATE), np.float32), "fltp", "mono")
            silence.sample_rate = RATE
            output.mux(tone.encode(silence))
            output.mux(tone.encode(None))
    return buffer.getvalue()

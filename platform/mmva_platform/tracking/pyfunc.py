"""The registered model as MLflow runs it: this file is copied beside the bundle and imports mmva, never the platform.

    model = mlflow.pyfunc.load_model("models:/mmva@champion")
    model.predict(pandas.DataFrame({"modality": ["caption"], "caption": ["calm piano"]}))

Columns in: modality; `uri`, a local file, for images, music and .txt captions; or `caption`, the text itself.
Columns out: valence and arousal in [0, 1], the bounds of their 90 % conformal intervals, and `error`. A row that cannot
be used has NaN and says why in `error`; its neighbours are not concerned.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd

from mmva.bundle import load_bundle
from mmva.errors import MediaError
from mmva.intervals import interval_bounds
from mmva.media.audio import decode_audio
from mmva.media.captions import clean_caption
from mmva.media.images import decode_image
from mmva.media.limits import Limits
from mmva.media.windows import windows
from mmva.modalities import MODALITIES

if TYPE_CHECKING:
    from mmva.model import MMVA

VALUES = ("valence", "arousal", "valence_low", "valence_high", "arousal_low", "arousal_high")
_BATCH = 16


class MmvaPyfunc(mlflow.pyfunc.PythonModel):
    """A bundle behind MLflow's predict."""

    def load_context(self, context: Any) -> None:
        """Load the bundle with its encoders.

        `model_config` holds window_s and hop_s (long music is the mean over windows, as in an annotation run), and what
        a loader may set: `mirror`, a folder of backbones, and `trusted_repos`, whose code may run.
        """
        config = dict(context.model_config)
        self._window_s, self._hop_s = float(config["window_s"]), float(config["hop_s"])
        self._limits = Limits()
        self._model: MMVA = load_bundle(
            Path(context.artifacts["bundle"]),
            mirror=config["mirror"],
            trusted_repos=tuple(config["trusted_repos"]),
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """VA points of the rows, in their order; see the module's text for the columns."""
        rows = model_input.to_dict("records")
        values_N6 = np.full((len(rows), len(VALUES)), np.nan)
        errors: list[str | None] = [None] * len(rows)
        for index, row in enumerate(rows):
            try:
                values_N6[index] = self._predict_row(row)
            except MediaError as error:
                errors[index] = f"{error.code}: {error}"
            except Exception as error:  # noqa: BLE001 - a row that nobody foresaw must not cost its neighbours
                errors[index] = f"unexpected-error: {type(error).__name__}: {error}"
        result = pd.DataFrame(values_N6, columns=list(VALUES), index=model_input.index)
        result["error"] = pd.Series(errors, index=model_input.index, dtype=object)
        return result

    def _predict_row(self, row: Mapping[Hashable, Any]) -> list[float]:
        modality = _text(row.get("modality"))
        if modality not in MODALITIES:
            raise MediaError("unknown-modality", f"modality {modality!r} is none of {', '.join(MODALITIES)}")
        if modality not in self._model.dims:
            raise MediaError("no-tower", f"this model has no {modality} tower")
        va_W2 = self._model.predict(modality, self._decode(modality, row), batch_size=_BATCH)
        va_12 = va_W2.mean(axis=0, dtype=np.float64, keepdims=True)
        bounds = [va_12 * np.nan] * 2
        if modality in self._model.intervals:
            bounds = list(interval_bounds(va_12, self._model.intervals[modality]))
        (low,), (high,) = bounds
        return [*va_12[0], low[0], high[0], low[1], high[1]]

    def _decode(self, modality: str, row: Mapping[Hashable, Any]) -> list[Any]:
        """The row's items: one image or caption, or the windows of its music."""
        text, uri = _text(row.get("caption")), _text(row.get("uri"))
        if modality == "caption":
            return [clean_caption(text if text is not None else _read(uri, self._limits), self._limits)]
        data = _read(uri, self._limits)
        if modality == "image":
            return [decode_image(data, self._limits)]
        sample_rate = self._model.encoder("music").sample_rate
        assert sample_rate is not None
        samples_T = decode_audio(data, sample_rate, self._limits)
        _, pieces = windows(samples_T, sample_rate, self._window_s, self._hop_s)
        return list(pieces)


def _text(cell: object) -> str | None:
    """A cell as text; None where it is missing (pandas has four spellings of that)."""
    missing = cell is None or cell is pd.NA or (isinstance(cell, float) and math.isnan(cell))
    return None if missing else str(cell)


def _read(uri: str | None, limits: Limits) -> bytes:
    """Bytes of a local file. Nothing else: a model that a stranger feeds must not fetch for them."""
    if uri is None:
        raise MediaError("no-media", "the row has neither a uri nor, for captions, a text", stage="fetch")
    if "://" in uri:
        raise MediaError(
            "not-local", "only local files are read here; use `mmva annotate` for object storage", stage="fetch"
        )
    path = Path(uri)
    try:
        if path.stat().st_size > limits.max_bytes:
            raise MediaError("too-many-bytes", f"{path.name} is over {limits.max_bytes} bytes", stage="fetch")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise MediaError("unreadable", f"{uri}: {getattr(error, 'strerror', None) or error}", stage="fetch") from None


mlflow.models.set_model(MmvaPyfunc())

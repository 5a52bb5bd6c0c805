"""The registered model as MLflow runs it: this file is copied next to the bundle; it imports mmva, never the platform.

    model = mlflow.pyfunc.load_model("models:/mmva@champion")
    model.predict(pandas.DataFrame({"modality": ["caption"], "caption": ["calm piano"]}))

Input columns: modality; `uri`, a local file (image, music, video or .txt caption); or `caption`, the text itself.
Output columns: valence and arousal in [0, 1], the bounds of their 90 % conformal intervals, and `error`. An unusable
row has NaN and the reason in `error`; other rows are not affected. Rows are processed like an annotation's items.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import pyarrow as pa

from mmva.errors import MediaError
from mmva.inference.config import default_preprocessing
from mmva.inference.heads import predict
from mmva.inference.pipeline import Pipeline
from mmva.models.bundle import load_bundle

if TYPE_CHECKING:
    from mmva.models.model import MMVA

VALUES = ("valence", "arousal", "valence_low", "valence_high", "arousal_low", "arousal_high")


class MmvaPyfunc(mlflow.pyfunc.PythonModel):
    """A bundle behind MLflow's predict."""

    def load_context(self, context: Any) -> None:
        """Load the bundle with its encoders.

        `model_config` holds window_s and hop_s (the windows of music and video), `mirror` (a folder of backbones) and
        `trusted_repos`, whose code may run.
        """
        config = dict(context.model_config)
        self._model: MMVA = load_bundle(
            Path(context.artifacts["bundle"]), mirror=config["mirror"], trusted_repos=tuple(config["trusted_repos"])
        )
        preprocessing = default_preprocessing(self._model.backbones, float(config["window_s"]), float(config["hop_s"]))
        self._pipeline = Pipeline(self._model.dims, self._model.encoder, preprocessing, _read)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """VA points in the order of the rows; see the module's docstring for the columns."""
        rows = [_item(number, row) for number, row in enumerate(model_input.to_dict("records"))]
        items = pa.Table.from_pylist(rows, _ITEM_SCHEMA)
        predicted = predict(self._model, self._pipeline.embed(items, items_at_fault=True))
        points = predicted.rows.select(["id", *VALUES]).to_pandas().set_index("id")
        errors = {row["id"]: f"{row['error']}: {row['message']}" for row in predicted.errors.to_pylist()}
        ids = [row["id"] for row in rows]
        result = points.reindex(ids).astype("float64").set_axis(model_input.index)
        result["error"] = pd.Series([errors.get(name) for name in ids], index=model_input.index, dtype=object)
        return result


_ITEM_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "uri", "modality", "caption")])


def _item(number: int, row: Mapping[Hashable, Any]) -> dict[str, str | None]:
    modality = _text(row.get("modality"))
    caption = _text(row.get("caption")) if modality == "caption" else None
    return {"id": str(number), "uri": _text(row.get("uri")), "modality": modality, "caption": caption}


def _text(cell: object) -> str | None:
    """A cell as text; None if it is missing (None, NA or NaN)."""
    missing = cell is None or cell is pd.NA or (isinstance(cell, float) and math.isnan(cell))
    return None if missing else str(cell)


def _read(uri: str, _size: int | None, most: int) -> bytes:
    """Bytes of a local file. Only local, because a served model must not fetch URLs for unknown users."""
    if "://" in uri:
        raise MediaError("not-local", "only local files are read; `mmva annotate` reads object storage", stage="fetch")
    path = Path(uri)
    try:
        if path.stat().st_size > most:
            raise MediaError("too-many-bytes", f"{path.name} is over {most} bytes", stage="fetch")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise MediaError("unreadable", f"{uri}: {getattr(error, 'strerror', None) or error}", stage="fetch") from None


mlflow.models.set_model(MmvaPyfunc())

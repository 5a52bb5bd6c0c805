"""Compute points, curves, intervals and moods from fresh or stored embeddings.

An item's point is its tower's output for its embedding, as in training and evaluation; a video's point is the mean over
its tracks. A curve has a point for each start time of a window: the mean over the tracks with a window there.

Shapes: N items, W windows of all of them, P points of their curves, D an embedding's width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmva.affect import mood
from mmva.evaluation.intervals import interval_bounds
from mmva.inference.tables import (
    EMBEDDING_SCHEMA,
    ERROR_SCHEMA,
    ROW_SCHEMA,
    WINDOW,
    Embedded,
    Predicted,
    constant,
    matrix,
    offsets,
    table_of,
)
from mmva.modalities import AXES

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva.models.predictor import Predictor

_NON_FINITE: Final = {
    "stage": "infer", "error": "non-finite", "message": "the model gave NaN or infinite values"
}  # fmt: skip


def predict(model: MMVA | Predictor, embedded: Embedded) -> Predicted:
    """Compute the rows of embedded items. An item whose embedding or point is not finite becomes an error.

    `embedded` may come from storage, with float16 windows. The model's encoders are not used.
    """
    rows, windows = embedded.rows, embedded.windows
    va_N2, finite_N = _points(model, rows)
    if not finite_N.all():
        bad = rows.filter(pa.array(~finite_N))
        rows, va_N2 = rows.filter(pa.array(finite_N)), va_N2[finite_N]
        windows = windows.filter(pc.is_in(windows["id"], value_set=rows["id"].combine_chunks()))
        embedded = _with_errors(embedded, bad)
    columns: dict[str, Any] = {name: rows[name] for name in EMBEDDING_SCHEMA.names}
    columns |= {axis: va_N2[:, index] for index, axis in enumerate(AXES)}
    columns |= _intervals(model, rows["modality"], va_N2)
    columns |= {"mood": pa.array(mood(va_N2).tolist(), pa.string()), "windows": _curves(model, rows["id"], windows)}
    return Predicted(table_of(columns, ROW_SCHEMA), windows, embedded.errors)


def _with_errors(embedded: Embedded, bad: pa.Table) -> Embedded:
    """Add items to the errors, in the order of all items."""
    columns = {name: constant(value, pa.string(), bad.num_rows) for name, value in _NON_FINITE.items()}
    columns |= {name: bad[name] for name in ("id", "uri", "modality", "sha256")}
    errors = pa.concat_tables([embedded.errors, table_of(columns, ERROR_SCHEMA)]).combine_chunks()
    order_E = np.argsort(np.asarray(pc.index_in(errors["id"], value_set=embedded.ids)), kind="stable")
    return Embedded(embedded.ids, embedded.rows, embedded.windows, errors.take(pa.array(order_E)))


def _points(model: MMVA | Predictor, rows: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """VA points [N, 2], and whether embedding and point are finite [N]; calls each tower once."""
    sum_N2, tracks_N = np.zeros((rows.num_rows, 2)), np.zeros(rows.num_rows)
    finite_N = np.ones(rows.num_rows, bool)
    parts: dict[str, list[tuple[NDArray[np.integer], NDArray[np.float32]]]] = {}
    kinds = pc.fill_null(pc.binary_join(rows["tracks"], "+"), rows["modality"])
    for kind in pc.unique(kinds).to_pylist():
        index_B = np.flatnonzero(np.asarray(pc.equal(kinds, kind)))
        emb_BD = matrix(rows["embedding"] if len(index_B) == rows.num_rows else rows["embedding"].take(index_B))
        finite_N[index_B] = np.isfinite(emb_BD).all(axis=1)
        towers = kind.split("+")
        edges = np.cumsum([model.dims[tower] for tower in towers])[:-1]
        for tower, emb_Bd in zip(towers, np.split(emb_BD, edges, axis=1), strict=True):
            parts.setdefault(tower, []).append((index_B, emb_Bd))
    for tower, found in parts.items():
        index_M = np.concatenate([index_B for index_B, _ in found])
        sum_N2[index_M] += model.predict_embeddings(tower, np.concatenate([emb_Bd for _, emb_Bd in found]))
        tracks_N[index_M] += 1
    va_N2 = sum_N2 / tracks_N[:, None]
    return va_N2, finite_N & np.isfinite(va_N2).all(axis=1)


def _curves(model: MMVA | Predictor, ids: pa.ChunkedArray, windows: pa.Table) -> pa.Array:
    """Each item's points by start time; null for items without windows."""
    if not windows.num_rows:
        return pa.nulls(len(ids), pa.list_(WINDOW))
    va_W2 = np.empty((windows.num_rows, 2), np.float64)
    for track in pc.unique(windows["track"]).to_pylist():
        of_track_W = np.asarray(pc.equal(windows["track"], track))
        va_W2[of_track_W] = model.predict_embeddings(track, matrix(windows["embedding"].filter(pa.array(of_track_W))))
    item_W = np.asarray(pc.index_in(windows["id"], value_set=ids.combine_chunks()))
    start_W = np.asarray(windows["start_s"])
    order_W = np.lexsort((start_W, item_W))
    item_W, start_W, va_W2 = item_W[order_W], start_W[order_W], va_W2[order_W]
    is_new_W = np.append(True, (np.diff(item_W) != 0) | (np.diff(start_W) != 0))
    first_P = np.flatnonzero(is_new_W)
    va_P2 = np.add.reduceat(va_W2, first_P, axis=0) / np.diff(np.append(first_P, len(item_W)))[:, None]
    points = pa.StructArray.from_arrays(
        [pa.array(start_W[first_P]), *(pa.array(va_P2[:, axis].astype(np.float32)) for axis in (0, 1))],
        fields=list(WINDOW),
    )
    count_N = np.bincount(item_W[first_P], minlength=len(ids))
    return pa.ListArray.from_arrays(offsets(count_N), points, pa.list_(WINDOW), mask=pa.array(count_N == 0))


def _intervals(model: MMVA | Predictor, modalities: pa.ChunkedArray, va_N2: NDArray[np.float64]) -> dict[str, pa.Array]:
    """Bounds of the model's intervals; null for modalities without one."""
    low_N2 = np.full(va_N2.shape, np.nan)
    high_N2 = low_N2.copy()
    for modality, half_width in model.intervals.items():
        of_it_N = np.asarray(pc.equal(modalities, modality))
        low_N2[of_it_N], high_N2[of_it_N] = interval_bounds(va_N2[of_it_N], half_width)
    return {
        f"{axis}_{side}": pa.array(bound_N2[:, index].astype(np.float32), from_pandas=True)
        for index, axis in enumerate(AXES)
        for side, bound_N2 in (("low", low_N2), ("high", high_N2))
    }

"""What a shard's items came to, as the tables of its commit: columns by columns, heads once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmva.affect import mood
from mmva.errors import MediaError
from mmva.intervals import interval_bounds
from mmva.modalities import AXES
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, WINDOW, WINDOW_EMBEDDING_SCHEMA

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva.predictor import Predictor

_MESSAGE_CHARACTERS: Final = 500
STAMPS: Final = ("model_name", "model_version", "model_digest", "run_id", "shard", "annotated_at")


@dataclass(slots=True)
class Track:
    """Windows of an item as one tower sees them; W of them, one for images and captions."""

    starts_s: list[float] = field(default_factory=list)
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)
    mean_D: NDArray[np.float32] | None = None

    def close(self) -> None:
        """All windows are there: their mean is the track's embedding."""
        if len(self.embeddings) == 1:
            self.mean_D = np.asarray(self.embeddings[0], np.float32)
        else:
            self.mean_D = np.stack(self.embeddings).mean(axis=0, dtype=np.float64).astype(np.float32)


@dataclass(slots=True)
class Embedded:
    """What an item's bytes came to: the same for all items of the same bytes.

    Attributes:
        tracks: Tower -> its windows, in the order in which they stand in the embedding.
        duration_s: Of music and video.
    """

    tracks: dict[str, Track] = field(default_factory=dict)
    duration_s: float | None = None

    @property
    def size(self) -> int:
        """Bytes of its embeddings."""
        return sum(sum(emb.nbytes for emb in track.embeddings) for track in self.tracks.values())


@dataclass(slots=True)
class Item:
    """A planned item on its way to one of the two tables."""

    id: str
    uri: str | None
    modality: str | None
    sha256: str | None = None
    embedded: Embedded | None = None
    error: MediaError | None = None
    va_2: NDArray[np.float64] | None = None
    curve: list[tuple[float, NDArray[np.float64]]] | None = None


def predict(model: MMVA | Predictor, items: Sequence[Item]) -> None:
    """Fill in points and curves of embedded items, one call of each head for the items and one for the windows.

    The point is the tower's value for the mean embedding, as in training and evaluation; a video's is the mean over
    its tracks. An item whose embedding or point is not finite gets its error.
    """
    parts: dict[str, list[tuple[Item, Track]]] = {}
    for item in items:
        assert item.embedded is not None
        for name, track in item.embedded.tracks.items():
            parts.setdefault(name, []).append((item, track))
    points: dict[int, list[NDArray[np.float32]]] = {}
    curves: dict[int, dict[int, list[tuple[float, NDArray[np.float32]]]]] = {}
    for name, tracks in parts.items():
        va_N2 = model.predict_embeddings(name, np.stack([np.asarray(track.mean_D) for _, track in tracks]))
        for (item, _), va_2 in zip(tracks, va_N2, strict=True):
            points.setdefault(id(item), []).append(va_2)
        long = [(item, track) for item, track in tracks if _is_long(item)]
        if long:
            va_W2 = model.predict_embeddings(name, np.concatenate([np.stack(track.embeddings) for _, track in long]))
            _share_out(long, va_W2, curves)
    for item in items:
        item.va_2 = np.mean(points[id(item)], axis=0, dtype=np.float64)
        if id(item) in curves:
            item.curve = [
                (at[0][0], np.mean([va_2 for _, va_2 in at], axis=0, dtype=np.float64))
                for _, at in sorted(curves[id(item)].items())
            ]
        embedded = item.embedded
        assert embedded is not None
        finite = all(np.isfinite(np.asarray(track.mean_D)).all() for track in embedded.tracks.values())
        if not finite or not np.isfinite(item.va_2).all():
            item.error = MediaError("non-finite", "the model gave NaN or infinite values", stage="infer")


def annotation_table(items: Sequence[Item], model: MMVA | Predictor, plan: Plan, shard: str) -> pa.Table:
    """Rows of predicted items (ANNOTATION_SCHEMA)."""
    if not items:
        return ANNOTATION_SCHEMA.empty_table()
    va_N2 = np.stack([np.asarray(item.va_2) for item in items])
    embedded = [item.embedded for item in items]
    columns: dict[str, Any] = {
        "id": [item.id for item in items],
        "uri": [item.uri for item in items],
        "modality": [item.modality for item in items],
        "valence": va_N2[:, 0],
        "arousal": va_N2[:, 1],
        **interval_columns(pa.array([item.modality for item in items]), va_N2, model),
        "embedding": _lists([track.mean_D for one in embedded if one for track in one.tracks.values()], embedded),
        "mood": pa.array(mood(va_N2).tolist(), pa.string()),
        "tracks": [list(one.tracks) if item.modality == "video" and one else None for item, one in _zip(items)],
        "duration_s": [one.duration_s if one else None for one in embedded],
        "windows": _curves(items),
        "sha256": [item.sha256 for item in items],
    }
    return _table(columns | stamps(plan, shard, len(items)), ANNOTATION_SCHEMA)


def quarantine(items: Sequence[Item], plan: Plan, shard: str) -> pa.Table:
    """Rows of items with an error (QUARANTINE_SCHEMA)."""
    errors = [item.error for item in items]
    columns = {
        "id": [item.id for item in items],
        "uri": [item.uri for item in items],
        "modality": [item.modality for item in items],
        "stage": [error.stage for error in errors if error],
        "error": [error.code for error in errors if error],
        "message": [_one_line(str(error)) for error in errors],
        "sha256": [item.sha256 for item in items],
        "attempts": [plan.generation] * len(items),
        "run_id": [plan.run_id] * len(items),
        "shard": [shard] * len(items),
    }
    return _table(columns, QUARANTINE_SCHEMA)


def window_embeddings(items: Sequence[Item]) -> pa.Table:
    """Embeddings of the windows of items that have more than one (WINDOW_EMBEDDING_SCHEMA)."""
    found = [
        (item.id, name, start_s, emb_D)
        for item in items
        if item.embedded is not None and _is_long(item)
        for name, track in item.embedded.tracks.items()
        for start_s, emb_D in zip(track.starts_s, track.embeddings, strict=True)
    ]
    if not found:
        return WINDOW_EMBEDDING_SCHEMA.empty_table()
    ids, tracks, starts_s, embeddings = zip(*found, strict=True)
    flat = np.concatenate(embeddings).astype(np.float16)
    columns = {
        "id": list(ids),
        "track": list(tracks),
        "start_s": list(starts_s),
        "embedding": pa.ListArray.from_arrays(_offsets([len(emb_D) for emb_D in embeddings]), pa.array(flat)),
    }
    return _table(columns, WINDOW_EMBEDDING_SCHEMA)


def _is_long(item: Item) -> bool:
    return item.embedded is not None and any(len(track.starts_s) > 1 for track in item.embedded.tracks.values())


def _share_out(
    long: Sequence[tuple[Item, Track]],
    va_W2: NDArray[np.float32],
    curves: dict[int, dict[int, list[tuple[float, NDArray[np.float32]]]]],
) -> None:
    """Give each item its windows' points, by the window's number: tracks of a video share their windows."""
    first = 0
    for item, track in long:
        curve = curves.setdefault(id(item), {})
        for number, start_s in enumerate(track.starts_s):
            curve.setdefault(number, []).append((start_s, va_W2[first + number]))
        first += len(track.starts_s)


def interval_columns(
    modalities: pa.Array | pa.ChunkedArray, va_N2: NDArray[np.floating], model: MMVA | Predictor
) -> dict[str, pa.Array]:
    """Bounds of the model's intervals as columns of ANNOTATION_SCHEMA; null for modalities without one."""
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


def stamps(plan: Plan, shard: str, count: int) -> dict[str, pa.Array]:
    """Columns that put rows under a run's name."""
    model = plan.model
    values = (model.name, model.version, model.digest, plan.run_id, shard, plan.created_at)
    return {
        name: pa.repeat(pa.scalar(value, ANNOTATION_SCHEMA.field(name).type), count)
        for name, value in zip(STAMPS, values, strict=True)
    }


def _lists(parts: Sequence[Any], embedded: Sequence[Embedded | None]) -> pa.Array:
    lengths = [sum(len(np.asarray(track.mean_D)) for track in one.tracks.values()) for one in embedded if one]
    return pa.ListArray.from_arrays(_offsets(lengths), pa.array(np.concatenate(parts)))


def _curves(items: Sequence[Item]) -> pa.Array:
    curves = [item.curve for item in items]
    if not any(curves):
        return pa.nulls(len(items), ANNOTATION_SCHEMA.field("windows").type)
    points = [point for curve in curves for point in curve or ()]
    va_W2 = np.stack([va_2 for _, va_2 in points]).astype(np.float32)
    values = pa.StructArray.from_arrays(
        [pa.array([start_s for start_s, _ in points], pa.float64()), pa.array(va_W2[:, 0]), pa.array(va_W2[:, 1])],
        fields=list(WINDOW),
    )
    missing = pa.array([not curve for curve in curves])
    return pa.ListArray.from_arrays(_offsets([len(curve or ()) for curve in curves]), values, mask=missing)


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _zip(items: Sequence[Item]) -> list[tuple[Item, Embedded | None]]:
    return [(item, item.embedded) for item in items]


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    arrays = []
    for column in schema:
        values = columns[column.name]
        array = values if isinstance(values, pa.Array) else pa.array(values)
        arrays.append(array if array.type == column.type else array.cast(column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _one_line(message: str) -> str:
    text = " ".join(message.split())[:_MESSAGE_CHARACTERS]
    return text.encode(errors="replace").decode()

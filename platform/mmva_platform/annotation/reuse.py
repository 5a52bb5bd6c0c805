"""Annotations from an earlier annotation: rows as they stood, or new heads over the embeddings stored there.

Nothing here touches media or encoders, and nothing loops over rows: columns are Arrow arrays, points numpy arrays.

Shapes: N items of a shard, W windows of all of them, D an embedding's width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmva.affect import mood
from mmva.errors import CheckFailed
from mmva.modalities import AXES
from mmva_platform.annotation.base import base_files
from mmva_platform.annotation.commit import CommitRecord, ShardResult
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.publish import read_file
from mmva_platform.annotation.results import STAMPS, interval_columns, stamps
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, WINDOW, WINDOW_EMBEDDING_SCHEMA
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva.predictor import Predictor

logger = logging.getLogger(__name__)

_READERS: Final = 8  # a shard's files in the base are many and small: threads hide the waiting of remote storage
_KEPT_WITH_NEW_HEADS: Final = ("id", "uri", "modality", "embedding", "tracks", "duration_s", "sha256")


class Reuser:
    """Makes shards whose items all stand in the plan's base."""

    def __init__(
        self, model_loader: Callable[[], MMVA | Predictor], plan: Plan, storage: Storage, settings: Settings
    ) -> None:
        """Bind to a plan; nothing is read yet.

        Args:
            model_loader: Gives the towers, without encoders; called only if the base was made with another model.
            plan: With a base.
            storage: The run's output.
            settings: How to reach the base.
        """
        assert plan.base is not None
        self._load, self._plan, self._base, self._settings = model_loader, plan, plan.base, settings
        self._storage = storage
        self._model: MMVA | Predictor | None = None
        self._files: dict[str, tuple[Storage, CommitRecord]] | None = None
        # A base's file may reach over the end of a shard into the next one.
        self._last: dict[str, tuple[pa.Table, pa.Table]] = {}
        self._told = False

    def __call__(self, shard: str, items: pa.Table) -> ShardResult:
        """Rows of a shard's items (ITEM_SCHEMA, `base_file` never null), in their order.

        Raises:
            CheckFailed: If the base is not what it was when the plan was made.
            StorageError: If it cannot be read.
        """
        begun = time.monotonic()
        rows, windows = self._base_rows(items)
        read = time.monotonic()
        if self._base.same_model:
            ok = _completed(rows, stamps(self._plan, shard, rows.num_rows))
            result = ShardResult(ok, QUARANTINE_SCHEMA.empty_table(), work={"carried": ok.num_rows})
        else:
            result = self._with_new_heads(rows, windows, shard)
        if not self._plan.keep_windows:
            windows = WINDOW_EMBEDDING_SCHEMA.empty_table()
        elif result.quarantined.num_rows:
            windows = windows.filter(pc.is_in(windows["id"], value_set=result.ok["id"].combine_chunks()))
        seconds = {"fetch": read - begun, "heads": time.monotonic() - read}
        return ShardResult(result.ok, result.quarantined, windows, result.work, seconds)

    def _base_rows(self, items: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The items' rows in the base and their windows' embeddings, in the items' order."""
        stored, windows = self._stored(pc.unique(items["base_file"]).to_pylist())
        ids = items["id"].combine_chunks()
        position_N = pc.index_in(ids, value_set=stored["id"].combine_chunks())
        if position_N.null_count:
            lost = ids.filter(pc.is_null(position_N))[0].as_py()
            raise CheckFailed(f"{self._base.uri}: item {lost} is not in the file that it was planned from")
        if not self._base.same_model and not self._told and self._lacks_windows(stored, windows):
            self._told = True
            logger.warning("%s keeps no embeddings of windows: curves of its items are left out", self._base.uri)
        if windows.num_rows:
            item_W = pc.index_in(windows["id"], value_set=ids)
            windows = windows.append_column("item", item_W).filter(pc.is_valid(item_W))
            windows = windows.sort_by([("item", "ascending"), ("track", "ascending"), ("start_s", "ascending")])
            windows = windows.drop_columns("item")
        return _taken(stored, np.asarray(position_N)), windows.combine_chunks()

    def _stored(self, files: list[str]) -> tuple[pa.Table, pa.Table]:
        """Rows and windows' embeddings of files of the base."""
        if self._files is None:
            base = open_storage(self._base.uri, self._settings.storage)
            self._files = base_files(base, self._base.manifest_sha256, self._settings)
        unknown = [path for path in files if path not in self._files]
        if unknown:
            raise CheckFailed(f"{self._base.uri}: {unknown[0]} is planned with and not among its files")
        with ThreadPoolExecutor(_READERS) as pool:
            read = list(pool.map(self._read, files))
        self._last = {files[-1]: read[-1]}
        return tuple(pa.concat_tables(tables).combine_chunks() for tables in zip(*read, strict=True))

    def _read(self, path: str) -> tuple[pa.Table, pa.Table]:
        """Rows and windows' embeddings of one of the base's files, checked by digest; called by several threads."""
        if path in self._last:
            return self._last[path]
        assert self._files is not None
        place, commit = self._files[path]
        assert commit.data is not None
        windows = commit.windows and read_file(place, commit.windows)
        carried = [name for name in ANNOTATION_SCHEMA.names if name not in STAMPS]
        columns = carried if self._base.same_model else _KEPT_WITH_NEW_HEADS
        return read_file(place, commit.data, columns), windows or WINDOW_EMBEDDING_SCHEMA.empty_table()

    def _lacks_windows(self, rows: pa.Table, windows: pa.Table) -> bool:
        longest = pc.max(rows["duration_s"]).as_py()
        return windows.num_rows == 0 and longest is not None and longest > self._plan.preprocessing.window_s

    def _with_new_heads(self, rows: pa.Table, windows: pa.Table, shard: str) -> ShardResult:
        if self._model is None:
            self._model = self._load()
        va_N2 = _points(self._model, rows)
        fresh: dict[str, pa.Array] = {axis: pa.array(va_N2[:, index], pa.float32()) for index, axis in enumerate(AXES)}
        fresh |= interval_columns(rows["modality"], va_N2, self._model)
        fresh["mood"] = pa.array(mood(va_N2), pa.string())
        fresh["windows"] = _curves(self._model, rows["id"], windows)
        rows = _completed(rows, fresh | stamps(self._plan, shard, rows.num_rows))
        finite_N = np.isfinite(va_N2).all(axis=1)
        if finite_N.all():
            return ShardResult(rows, QUARANTINE_SCHEMA.empty_table(), work={"heads": rows.num_rows})
        bad = rows.filter(pa.array(~finite_N))
        work = {"heads": int(finite_N.sum()), "quarantined": bad.num_rows}
        return ShardResult(rows.filter(pa.array(finite_N)), self._quarantine(bad, shard), work=work)

    def _quarantine(self, rows: pa.Table, shard: str) -> pa.Table:
        """Rows to which the new heads gave no numbers."""
        values: dict[str, Any] = {
            "stage": "infer", "error": "non-finite", "message": "the model gave NaN or infinite values",
            "attempts": self._plan.generation, "run_id": self._plan.run_id, "shard": shard,
        }  # fmt: skip
        columns = [
            pa.repeat(pa.scalar(values[field.name], field.type), rows.num_rows)
            if field.name in values
            else rows[field.name]
            for field in QUARANTINE_SCHEMA
        ]
        return pa.Table.from_arrays(columns, schema=QUARANTINE_SCHEMA)


def _points(model: MMVA | Predictor, rows: pa.Table) -> NDArray[np.float32]:
    """VA points [N, 2] of stored embeddings; of video the mean of its tracks' points."""
    va_N2 = np.empty((rows.num_rows, 2), np.float32)
    kinds = pc.fill_null(pc.binary_join(rows["tracks"], "+"), rows["modality"])
    embeddings = rows["embedding"].combine_chunks()
    for kind in pc.unique(kinds).to_pylist():
        index_B = np.flatnonzero(np.asarray(pc.equal(kinds, kind)))
        emb_BD = _matrix(embeddings if len(index_B) == rows.num_rows else embeddings.take(pa.array(index_B)))
        towers = kind.split("+")
        edges = np.cumsum([model.dims[tower] for tower in towers])[:-1]
        tracks = np.split(emb_BD, edges, axis=1)
        points = [model.predict_embeddings(tower, part) for tower, part in zip(towers, tracks, strict=True)]
        va_N2[index_B] = np.mean(points, axis=0)
    return va_N2


def _matrix(lists: pa.ListArray) -> NDArray[Any]:
    """Lists of one length as a matrix; a copy, because torch takes no read-only memory."""
    return np.array(lists.flatten(), np.float32).reshape(len(lists), -1)


def _curves(model: MMVA | Predictor, ids: pa.ChunkedArray, windows: pa.Table) -> pa.Array:
    """Each item's points by window, null without stored windows; where tracks share a start, their mean."""
    if not windows.num_rows:
        return pa.nulls(len(ids), pa.list_(WINDOW))
    va_W2 = np.empty((windows.num_rows, 2), np.float64)
    for track in pc.unique(windows["track"]).to_pylist():
        of_it_W = np.asarray(pc.equal(windows["track"], track))
        lists = windows["embedding"].filter(pa.array(of_it_W)).combine_chunks()
        va_W2[of_it_W] = model.predict_embeddings(track, _matrix(lists))
    item_W = np.asarray(pc.index_in(windows["id"], value_set=ids.combine_chunks()))
    start_W = np.asarray(windows["start_s"])
    order_W = np.lexsort((start_W, item_W))
    item_W, start_W, va_W2 = item_W[order_W], start_W[order_W], va_W2[order_W]
    is_new_W = np.append(True, (np.diff(item_W) != 0) | (np.diff(start_W) != 0))
    first_P = np.flatnonzero(is_new_W)  # P points: windows, whatever their number of tracks
    va_P2 = np.add.reduceat(va_W2, first_P, axis=0) / np.diff(np.append(first_P, len(item_W)))[:, None]
    points = pa.StructArray.from_arrays(
        [pa.array(start_W[first_P]), *(pa.array(va_P2[:, axis].astype(np.float32)) for axis in (0, 1))],
        fields=list(WINDOW),
    )
    count_N = np.bincount(item_W[first_P], minlength=len(ids))
    offset = np.append(0, np.cumsum(count_N)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offset), points, pa.list_(WINDOW), mask=pa.array(count_N == 0))


def _completed(rows: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    """Rows with some columns anew, in exactly the annotations' schema."""
    values = [columns[name] if name in columns else rows[name] for name in ANNOTATION_SCHEMA.names]
    return pa.Table.from_arrays(values, schema=ANNOTATION_SCHEMA)


def _taken(rows: pa.Table, position_N: NDArray[np.integer]) -> pa.Table:
    """Rows by position; without a copy where they stand one after another."""
    first = int(position_N[0])
    if np.array_equal(position_N, np.arange(first, first + len(position_N))):
        return rows.slice(first, len(position_N))
    return rows.take(pa.array(position_N)).combine_chunks()

"""Annotations from an earlier annotation: rows as they were, or new heads over the embeddings stored there.

Nothing here reads media or encoders, and nothing loops over rows: columns are Arrow arrays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmva.errors import CheckFailed
from mmva.inference.heads import predict
from mmva.inference.tables import EMBEDDING_SCHEMA, ERROR_SCHEMA, Embedded
from mmva_platform.annotation.base import base_files
from mmva_platform.annotation.commit import CommitRecord, ShardResult
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.publish import read_file
from mmva_platform.annotation.results import stamped, stamps
from mmva_platform.annotation.schema import (
    ANNOTATION_SCHEMA,
    QUARANTINE_SCHEMA,
    STAMP_SCHEMA,
    WINDOW_EMBEDDING_SCHEMA,
)
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva.predictor import Predictor

logger = logging.getLogger(__name__)

_READERS: Final = 8  # a shard's files in the base are many and small: threads hide the waiting of remote storage


class Reuser:
    """Makes shards whose items are all in the plan's base."""

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
        self._warned = False

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
            kept = windows if self._plan.keep_windows else windows.slice(0, 0)
            result = ShardResult(ok, QUARANTINE_SCHEMA.empty_table(), kept, {"carried": ok.num_rows})
        else:
            result = self._with_new_heads(rows, windows, shard)
        return replace(result, seconds={"fetch": read - begun, "heads": time.monotonic() - read})

    def _base_rows(self, items: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The items' rows in the base and their windows' embeddings, in the items' order."""
        stored, windows = self._stored(pc.unique(items["base_file"]).to_pylist())
        ids = items["id"].combine_chunks()
        position_N = pc.index_in(ids, value_set=stored["id"].combine_chunks())
        if position_N.null_count:
            lost = ids.filter(pc.is_null(position_N))[0].as_py()
            raise CheckFailed(f"{self._base.uri}: item {lost} is not in the file that it was planned from")
        if not self._base.same_model and not self._warned and self._lacks_windows(stored, windows):
            self._warned = True
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
        carried = [name for name in ANNOTATION_SCHEMA.names if name not in STAMP_SCHEMA.names]
        columns = carried if self._base.same_model else EMBEDDING_SCHEMA.names
        return read_file(place, commit.data, columns), windows or WINDOW_EMBEDDING_SCHEMA.empty_table()

    def _lacks_windows(self, rows: pa.Table, windows: pa.Table) -> bool:
        longest = pc.max(rows["duration_s"]).as_py()
        return windows.num_rows == 0 and longest is not None and longest > self._plan.preprocessing.window_s

    def _with_new_heads(self, rows: pa.Table, windows: pa.Table, shard: str) -> ShardResult:
        if self._model is None:
            self._model = self._load()
        embedded = Embedded(rows["id"].combine_chunks(), rows, windows, ERROR_SCHEMA.empty_table())
        result = stamped(predict(self._model, embedded), self._plan, shard)
        work = {"heads": result.ok.num_rows}
        if result.quarantined.num_rows:
            work["quarantined"] = result.quarantined.num_rows
        return ShardResult(result.ok, result.quarantined, result.windows, work)


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

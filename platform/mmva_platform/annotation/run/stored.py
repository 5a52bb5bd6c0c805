"""Makes shards whose items are unchanged: copies their rows, or runs new heads over their stored embeddings.

This reads no media, needs no encoders, and does not loop over rows: columns are Arrow arrays. Embeddings are not
copied; new rows refer to the existing files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmva.errors import CheckFailed
from mmva.inference.heads import predict
from mmva.inference.tables import EMBEDDING_SCHEMA, ERROR_SCHEMA, Embedded, table_of
from mmva_platform.annotation.plan.plan import Plan
from mmva_platform.annotation.run.annotator import flat_windows, stamped
from mmva_platform.annotation.schema import EMBEDDING_FILE_SCHEMA, REFERENCE_SCHEMA, SCHEMAS
from mmva_platform.annotation.table.commit import ShardResult
from mmva_platform.annotation.table.reader import Annotation

if TYPE_CHECKING:
    from mmva.models.model import MMVA
    from mmva.models.predictor import Predictor


class StoredRows:
    """Makes shards from rows of the version before."""

    def __init__(self, load_model: Callable[[], MMVA | Predictor], plan: Plan, before: Annotation) -> None:
        """`load_model` returns the towers without encoders; it is only called if `before` has another model."""
        assert plan.base is not None
        self._load_model, self._plan, self._before = load_model, plan, before
        self._same_model = plan.base.same_model
        self._files = {file.path: file for file in before.all_files}
        # A file's rows may be in two consecutive shards.
        self._rows_of = lru_cache(maxsize=2)(self._read)

    def __call__(self, shard: str, items: pa.Table) -> ShardResult:
        """Rows of a shard's items (ITEM_SCHEMA, `base_file` never null), in their order.

        Raises CheckFailed if the version before has changed since the plan was made, StorageError if it cannot be read.
        """
        begun = time.monotonic()
        ok, quarantined = self._rows(items, "ok"), self._rows(items, "quarantined")
        read = time.monotonic()
        if self._same_model or not ok.num_rows:
            work = {"carried": ok.num_rows + quarantined.num_rows}
            return ShardResult(ok, quarantined, work=work, seconds={"fetch": read - begun})
        result = self._with_new_heads(ok, shard)
        work = {"heads": result.ok.num_rows, "quarantined": result.quarantined.num_rows}
        if quarantined.num_rows:
            result = replace(result, quarantined=pa.concat_tables([result.quarantined, quarantined]).combine_chunks())
            work["carried"] = quarantined.num_rows
        seconds = {"fetch": read - begun, "heads": time.monotonic() - read}
        return replace(result, work={name: count for name, count in work.items() if count}, seconds=seconds)

    def _rows(self, items: pa.Table, status: str) -> pa.Table:
        found = [SCHEMAS[status].empty_table()]
        for path in pc.unique(items["base_file"]).to_pylist():
            if path not in self._files:
                raise CheckFailed(
                    f"{self._before.uri}: version {self._before.version} lacks {path}, which the plan uses"
                )
            if self._files[path].status == status:
                found.append(self._taken(path, items.filter(pc.equal(items["base_file"], path))))
        return pa.concat_tables(found).combine_chunks()

    def _taken(self, path: str, items: pa.Table) -> pa.Table:
        rows = self._rows_of(path)
        if (pc.max(items["base_row"]).as_py() or 0) >= rows.num_rows:
            raise CheckFailed(f"{self._before.storage.join(path)}: has fewer rows than when the update was planned")
        taken = rows.take(items["base_row"]) if items.num_rows != rows.num_rows else rows
        if not taken["id"].cast(pa.large_string()).combine_chunks().equals(items["id"].combine_chunks()):
            raise CheckFailed(f"{self._before.storage.join(path)}: its items are not those that were planned")
        return taken

    def _read(self, path: str) -> pa.Table:
        file = self._files[path]
        return self._before.read(file, SCHEMAS[file.status].names)

    def _with_new_heads(self, rows: pa.Table, shard: str) -> ShardResult:
        stored = self._before.embeddings_of(rows, EMBEDDING_FILE_SCHEMA.names)
        if not stored["id"].combine_chunks().equals(rows["id"].combine_chunks()):
            raise CheckFailed(f"{self._before.uri}: shard {shard} has embeddings of other items; run verify")
        columns = {name: rows[name] for name in EMBEDDING_SCHEMA.names if name != "embedding"}
        embedded = Embedded(
            ids=rows["id"].combine_chunks(),
            rows=table_of(columns | {"embedding": stored["embedding"]}, EMBEDDING_SCHEMA),
            windows=flat_windows(stored),
            errors=ERROR_SCHEMA.empty_table(),
        )
        result = stamped(predict(self._load_model(), embedded), self._plan, shard, _as_items(rows))
        at = pc.index_in(result.ok["id"], value_set=embedded.ids)
        ok = result.ok
        for column in REFERENCE_SCHEMA:
            ok = ok.set_column(ok.schema.get_field_index(column.name), column, rows[column.name].take(at))
        return ShardResult(ok, result.quarantined)


def _as_items(rows: pa.Table) -> pa.Table:
    """Rows as the items that `stamped` needs; attempt 1, in case the heads fail."""
    ones = pa.array(np.ones(rows.num_rows, np.int32))
    columns = [rows["id"].cast(pa.large_string()), rows["caption"], rows["item_digest"], ones]
    return pa.table(columns, names=["id", "caption", "item_digest", "attempts"])

"""Finds the items of a catalog that a version has unchanged, with their data file and row.

Memory holds 24 bytes per item of that version: digests of ids and of catalog rows, and the row's place.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmva_platform.annotation.plan.spool import as_new
from mmva_platform.annotation.plan.unique import digests_of
from mmva_platform.annotation.schema import CATALOG_SCHEMA, ITEM_SCHEMA, STATUSES
from mmva_platform.annotation.table.reader import Annotation

CHANGED = -1  # base_row of an item that the version has with another digest


class Lookup:
    """Converts batches of a catalog (CATALOG_SCHEMA) to items (ITEM_SCHEMA) with their places in a version."""

    def __init__(self, version: Annotation) -> None:
        """Read ids and digests of all K items of the version."""
        keys, digests = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for status in STATUSES:
            for table in version.tables(("id", "item_digest"), status):
                keys.append(digests_of(table["id"])[:, 0])
                digests.append(np.asarray(table["item_digest"]))
        files = [file for status in STATUSES for file in version.files(status)]
        key_K = np.concatenate(keys)
        order_K = np.argsort(key_K, kind="stable")
        self._key_K, self._digest_K = key_K[order_K], np.concatenate(digests)[order_K]
        self._file_K = np.repeat(np.arange(len(files), dtype=np.int32), [file.rows for file in files])[order_K]
        rows = [np.arange(file.rows, dtype=np.int32) for file in files]
        self._row_K = np.concatenate([np.empty(0, np.int32), *rows])[order_K]
        self._paths = pa.array([file.path for file in files], pa.large_string())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Items of the batch, in its order."""
        items = as_new(batch)
        if not len(self._key_K):
            return items
        key_N = digests_of(batch["id"])[:, 0]
        at_N = np.minimum(np.searchsorted(self._key_K, key_N), len(self._key_K) - 1)
        known_N = self._key_K[at_N] == key_N
        same_N = known_N & (self._digest_K[at_N] == np.asarray(items["item_digest"]))
        base_file = self._paths.take(pa.array(self._file_K[at_N], mask=~same_N))
        base_row = pa.array(np.where(same_N, self._row_K[at_N], CHANGED), mask=~known_N)
        return pa.Table.from_arrays([*items.columns[:-2], base_file, base_row], schema=ITEM_SCHEMA)


class QuarantineLookup:
    """Converts batches of a version's quarantine to items, with one more attempt and the same digest.

    `quarantine` has the columns id, item_digest and attempts of QUARANTINE_SCHEMA.
    """

    def __init__(self, quarantine: pa.Table) -> None:
        self._ids = quarantine["id"].cast(pa.large_string()).combine_chunks()
        self._rows = quarantine

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Items of the batch, in its order."""
        at_N = pc.index_in(batch["id"], value_set=self._ids)
        attempts = pc.add(self._rows["attempts"].take(at_N), pa.scalar(1, pa.int32()))
        nothing = pa.nulls(batch.num_rows)
        columns = [*batch.select(CATALOG_SCHEMA.names).columns, self._rows["item_digest"].take(at_N), attempts]
        return pa.Table.from_arrays([*columns, nothing, nothing], schema=ITEM_SCHEMA)

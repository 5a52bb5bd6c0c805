"""Which items of a catalog a version of an annotation holds unchanged, and in which row of which data file.

Per item of that version, 24 bytes are in memory: digests of ids and of rows of the catalog, and where the row is.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmva_platform.annotation.reader import Annotation
from mmva_platform.annotation.schema import CATALOG_SCHEMA, ITEM_SCHEMA, STATUSES, item_digests
from mmva_platform.annotation.unique import digests_of

CHANGED = -1  # base_row of an item that the version holds with another digest


class Lookup:
    """Gives items (ITEM_SCHEMA) for batches of a catalog (CATALOG_SCHEMA), with their places in a version."""

    def __init__(self, version: Annotation) -> None:
        """Read ids and digests of all its items, K of them."""
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
        digest_N = item_digests(batch)
        known_N, same_N, at_N = self._found(digests_of(batch["id"])[:, 0], digest_N)
        base_file = pa.nulls(batch.num_rows, pa.large_string())
        base_row_N = np.full(batch.num_rows, CHANGED, np.int64)
        if len(self._key_K):
            base_file = self._paths.take(pa.array(self._file_K[at_N], mask=~same_N))
            base_row_N = np.where(same_N, self._row_K[at_N], CHANGED)
        columns = [
            *batch.select(CATALOG_SCHEMA.names).columns,
            pa.array(digest_N),
            pa.array(np.ones(batch.num_rows, np.int32)),
            base_file,
            pa.array(base_row_N, mask=~known_N),
        ]
        return pa.Table.from_arrays(columns, schema=ITEM_SCHEMA)

    def _found(
        self, key_N: NDArray[np.uint64], digest_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
        """Whether each id is known, whether its digest is the same, and its place."""
        if not len(self._key_K):
            nothing_N = np.zeros(len(key_N), bool)
            return nothing_N, nothing_N, np.zeros(len(key_N), np.int64)
        at_N = np.minimum(np.searchsorted(self._key_K, key_N), len(self._key_K) - 1)
        known_N = self._key_K[at_N] == key_N
        return known_N, known_N & (self._digest_K[at_N] == digest_N), at_N


class QuarantineLookup:
    """Gives items for batches of a catalog that is a version's quarantine: one attempt more, the same digest."""

    def __init__(self, quarantine: pa.Table) -> None:
        """quarantine: id, item_digest and attempts of QUARANTINE_SCHEMA."""
        self._ids = quarantine["id"].cast(pa.large_string()).combine_chunks()
        self._rows = quarantine

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Items of the batch, in its order."""
        at_N = pc.index_in(batch["id"], value_set=self._ids)
        columns = [
            *batch.select(CATALOG_SCHEMA.names).columns,
            self._rows["item_digest"].take(at_N),
            pc.add(self._rows["attempts"].take(at_N), pa.scalar(1, pa.int32())),
            *(pa.nulls(batch.num_rows, ITEM_SCHEMA.field(name).type) for name in ("base_file", "base_row")),
        ]
        return pa.Table.from_arrays(columns, schema=ITEM_SCHEMA)

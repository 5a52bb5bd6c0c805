"""The worker of `verify`: compares data files with their digests, the plan, and the embeddings they refer to."""

import io
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmva.errors import CheckFailed
from mmva.files import sha256_hex
from mmva_platform.annotation.plan.plan import ItemReader, Plan
from mmva_platform.annotation.plan.unique import digests_of
from mmva_platform.annotation.schema import EMBEDDING_FILE_SCHEMA, SCHEMAS
from mmva_platform.annotation.table.delta import TableFile, digest_in
from mmva_platform.bulk import Attempt
from mmva_platform.storage import Storage, StorageNotFound

_READ: Final = ("id", "embedding_file", "embedding_row")
_IDS_SHOWN: Final = 5


@dataclass
class Findings:
    """The result of a unit of work."""

    name: str
    problems: list[str] = field(default_factory=list)
    annotated: int = 0
    quarantined: int = 0
    # 128-bit digests of all ids, shape [N, 2]
    digest_N2: NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 2), np.uint64))


class FileVerifier:
    """Verifies the data files of a version, shard by shard."""

    def __init__(self, storage: Storage, plan: Plan) -> None:
        self._storage, self._items = storage, ItemReader(storage, plan)

    def __call__(self, shard: dict[str, Any], attempt: Attempt) -> Findings:
        """Check a unit of work from the bytes of its files.

        `shard` holds "shard", its name, "files", the TableFiles, and "planned", the version's own shard that made them,
        or None.
        """
        attempt.step("fetch")
        found = Findings(shard["shard"])
        parts = [self._file_ids(file, found) for file in map(TableFile._make, shard["files"])]
        ids = pa.chunked_array(parts, pa.string()).cast(pa.large_string()).combine_chunks()
        if len(ids):
            found.digest_N2 = digests_of(ids)
        if shard["planned"] is not None:
            found.problems += self._against_plan(shard["planned"], ids)
        return found

    def _file_ids(self, file: TableFile, found: Findings) -> pa.Array:
        """Return the ids in a data file; add its problems and those of its embeddings to `found`."""
        columns = [column for column in SCHEMAS[file.status] if column.name != "modality"]
        table = self._checked(file.path, pa.schema(columns), found)
        if table is None:
            return pa.array([], pa.string())
        if table.num_rows != file.rows:
            found.problems.append(f"{file.path}: {table.num_rows} rows, the table says {file.rows}")
        if file.status == "ok":
            found.annotated += table.num_rows
            found.problems += self._embedding_problems(file.path, table)
        else:
            found.quarantined += table.num_rows
        return table["id"].combine_chunks()

    def _embedding_problems(self, path: str, rows: pa.Table) -> list[str]:
        """Problems of the files that rows refer to: each row's embedding must exist and have its id."""
        found = Findings("")
        for name in rows["embedding_file"].unique().to_pylist():
            if name is None:
                found.problems.append(f"{path}: has rows without an embedding")
                continue
            stored = self._checked(name, EMBEDDING_FILE_SCHEMA, found)
            if stored is None:
                continue
            here = rows.filter(pc.equal(rows["embedding_file"], name))
            at_N = np.asarray(here["embedding_row"])
            if len(at_N) and not 0 <= at_N.min() <= at_N.max() < stored.num_rows:
                found.problems.append(f"{path}: refers to rows that {name} does not have")
                continue
            theirs = stored["id"].take(here["embedding_row"])
            wrong = here["id"].filter(pc.not_equal(here["id"], theirs))
            if len(wrong):
                ids = some(wrong.to_pylist())
                found.problems.append(f"{path}: {len(wrong)} items refer to another's embedding: {ids}")
        return found.problems

    def _checked(self, path: str, schema: pa.Schema, found: Findings) -> pa.Table | None:
        """Return a file's table; if it is not as its name and `schema` say, return None and add the problem."""
        try:
            data = self._storage.read(path)
        except StorageNotFound as error:
            found.problems.append(f"{path}: cannot be read ({error})")
            return None
        if sha256_hex(data) != digest_in(path):
            found.problems.append(f"{path}: changed since it was written (SHA-256 differs)")
            return None
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            if file.schema_arrow.equals(schema):
                return file.read(columns=[name for name in _READ if name in schema.names])
        except (pa.ArrowException, OSError) as error:
            found.problems.append(f"{path}: cannot be read ({' '.join(str(error).split())})")
            return None
        found.problems.append(f"{path}: its columns are not those of this format")
        return None

    def _against_plan(self, shard: str, found: pa.Array) -> list[str]:
        try:
            planned = self._items(shard)["id"].combine_chunks()
        except (CheckFailed, StorageNotFound, pa.ArrowInvalid) as error:
            return [str(error)]
        counted = pc.value_counts(found)
        twice = counted.field("values").filter(pc.greater(counted.field("counts"), 1))
        lost, extra = _not_in(planned, found), _not_in(found, planned)
        kinds = (("missing", lost), ("not in the plan", extra), ("more than once", twice))
        return [f"shard {shard}: {len(ids)} items {kind}: {some(ids.to_pylist())}" for kind, ids in kinds if len(ids)]


def _not_in(ids: pa.Array, others: pa.Array) -> pa.Array:
    return ids.filter(pc.invert(pc.is_in(ids, value_set=others)))


def some(ids: Collection[str]) -> str:
    """The first few ids, for a message."""
    return ", ".join(sorted(ids)[:_IDS_SHOWN])

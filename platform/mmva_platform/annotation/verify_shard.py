"""The worker of `verify`: one shard's files against its commit record and the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mmva.errors import CheckFailed
from mmva_platform.annotation.commit import CommitRecord, FileRecord
from mmva_platform.annotation.plan import ItemReader, Plan
from mmva_platform.annotation.publish import read_file
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, WINDOW_EMBEDDING_SCHEMA
from mmva_platform.bulk import Attempt
from mmva_platform.storage import Storage, StorageNotFound

FOLDERS: Final = {"data": ANNOTATION_SCHEMA, "quarantine": QUARANTINE_SCHEMA, "windows": WINDOW_EMBEDDING_SCHEMA}
_IDS_SHOWN: Final = 5


@dataclass
class ShardFindings:
    """What was found in a shard.

    Attributes:
        shard: Its name.
        problems: One line each.
        annotated: Rows of annotations.
        quarantined: Ids of the quarantine's rows.
        hash_N: 64-bit hashes of the planned ids.
        planned: The planned ids, if they were asked for.
    """

    shard: str
    problems: list[str] = field(default_factory=list)
    annotated: int = 0
    quarantined: list[str] = field(default_factory=list)
    hash_N: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    planned: set[str] = field(default_factory=set)


class ShardVerifier:
    """Verifies shards of one generation."""

    def __init__(self, place: Storage, plan: Plan) -> None:
        self._place, self._run_id, self._items = place, plan.run_id, ItemReader(place, plan)

    def __call__(self, shard: dict[str, Any], attempt: Attempt) -> ShardFindings:
        """Check the shard of a commit record.

        Args:
            shard: "commit", its record; "planned", whether the plan has it; "with_ids", whether to return planned ids.
            attempt: Told of each step.
        """
        attempt.step("fetch")
        commit: CommitRecord = shard["commit"]
        found = ShardFindings(commit.shard)
        ids = self._row_ids(commit, found)
        if not shard["planned"]:
            return found
        try:
            planned = self._items(commit.shard)["id"].to_pylist()
        except (CheckFailed, StorageNotFound, pa.ArrowInvalid) as error:
            found.problems.append(str(error))
            return found
        found.hash_N = pd.util.hash_array(np.array(planned, object), categorize=False)
        found.problems += _differences(commit.shard, planned, ids)
        if shard["with_ids"]:
            found.planned = set(planned)
        return found

    def _row_ids(self, commit: CommitRecord, found: ShardFindings) -> list[str]:
        """Ids of a shard's rows, with the problems of its files."""
        ok = self._ids(commit, "data", commit.data, commit.ok, found)
        bad = self._ids(commit, "quarantine", commit.quarantine, commit.quarantined, found)
        of_windows = self._ids(commit, "windows", commit.windows, None, found)
        orphans = set(of_windows) - set(ok)
        if orphans:
            found.problems.append(
                f"shard {commit.shard}: windows of {len(orphans)} items without a row: {some(orphans)}"
            )
        found.annotated, found.quarantined = len(ok), bad
        return ok + bad

    def _ids(
        self, commit: CommitRecord, kind: str, record: FileRecord | None, count: int | None, found: ShardFindings
    ) -> list[str]:
        """Ids in one of a shard's files; `count` is the record's count of them, None if it has none."""
        if record is None:
            if count:
                found.problems.append(f"shard {commit.shard}: counts {count} rows of {kind} but names no file")
            return []
        try:
            table = read_file(self._place, record)
        except (CheckFailed, StorageNotFound, pa.ArrowInvalid) as error:
            found.problems.append(str(error))
            return []
        if not table.schema.equals(FOLDERS[kind]):
            found.problems.append(f"{record.path}: its columns are not those of this schema version")
            return []
        if table.num_rows != record.rows or count not in {None, table.num_rows}:
            found.problems.append(f"{record.path}: {table.num_rows} rows, recorded {record.rows}, counted {count}")
        if table.num_rows and "shard" in table.column_names:
            stamps = set(zip(table["run_id"].to_pylist(), table["shard"].to_pylist(), strict=True))
            if stamps != {(self._run_id, commit.shard)}:
                found.problems.append(f"{record.path}: holds rows of another run or shard")
        ids: list[str] = table.column("id").to_pylist()
        return ids


def some(ids: Collection[str]) -> str:
    """The first few ids, for a message."""
    return ", ".join(sorted(ids)[:_IDS_SHOWN])


def _differences(shard: str, planned: list[str], found: list[str]) -> list[str]:
    lost, extra = set(planned) - set(found), set(found) - set(planned)
    twice = {identity for identity, count in Counter(found).items() if count > 1}
    kinds = (("missing", lost), ("not in the plan", extra), ("more than once", twice))
    return [f"shard {shard}: {len(ids)} items {kind}: {some(ids)}" for kind, ids in kinds if ids]

"""Whether every byte of an annotation is right: digests, schemas, counts, and every planned item exactly once.

All generations are read, a shard at a time: memory holds one shard, eight bytes an item and the quarantined ids.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.commit import CommitRecord, FileRecord, committed_shards, read_commit
from mmva_platform.annotation.plan import PLAN_FILE, ItemReader, Plan, changed_parts, read_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, add_up, read_file, read_manifest, retry_folder
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, WINDOW_EMBEDDING_SCHEMA
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, StorageNotFound, open_storage

_IDS_SHOWN: Final = 5
_FOLDERS: Final = {"data": ANNOTATION_SCHEMA, "quarantine": QUARANTINE_SCHEMA, "windows": WINDOW_EMBEDDING_SCHEMA}


@dataclass(frozen=True)
class VerifyReport:
    """Every problem found, one line each; none means that every item of the catalog stands exactly once.

    Attributes:
        out: The run.
        problems: What is wrong.
        items: The catalog's.
        annotated: Rows found in all generations.
        quarantined: Rows found in the last.
        generations: The run and its published retries.
        notes: What is worth knowing and no fault: files that a crash left behind, a retry under way.
    """

    out: str
    problems: tuple[str, ...]
    items: int
    annotated: int
    quarantined: int
    generations: int = 1
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return dataclasses.asdict(self) | {"ok": self.ok}

    def to_text(self) -> str:
        """The verdict, then every problem."""
        balance = f"{self.items} items = {self.annotated} annotated + {self.quarantined} quarantined"
        if self.generations > 1:
            balance += f", {self.generations} generations"
        verdict = f"verified, {balance}" if self.ok else f"{len(self.problems)} problems ({balance} found)"
        return "\n".join([f"{self.out}: {verdict}", *self.problems, *self.notes])


@dataclass
class _Generation:
    """One generation while it is checked; `prefix` names it in messages."""

    storage: Storage
    plan: Plan
    prefix: str
    problems: list[str] = field(default_factory=list)
    hashes: list[np.ndarray[Any, np.dtype[np.uint64]]] = field(default_factory=list)
    planned: int = 0
    annotated: int = 0
    quarantined: list[str] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)  # planned ids that the generation before had not quarantined


def verify(out: str, settings: Settings) -> VerifyReport:
    """Recompute everything from the bytes: digests, schemas, counts, and every planned id exactly once.

    Raises:
        UsageError: If there is no run at all; what is wrong with one is a problem in the report.
    """
    storage = open_storage(out, settings.storage)
    catalog = read_plan(storage).catalog
    problems: list[str] = []
    notes: list[str] = []
    done: list[_Generation] = []
    place: Storage = storage
    while not done or place.exists(MANIFEST_FILE):
        prefix = f"{retry_folder(len(done))}: " if done else ""
        generation = _checked(place, prefix, done[-1].quarantined if done else None, notes)
        problems += [prefix + problem for problem in generation.problems]
        done.append(generation)
        place = open_storage(storage.join(retry_folder(len(done))), settings.storage)
    if place.exists(PLAN_FILE):
        notes.append(f"{retry_folder(len(done))}: not published; `mmva annotations retry` again finishes it")
    annotated, quarantined = sum(generation.annotated for generation in done), len(done[-1].quarantined)
    if not problems and annotated + quarantined != catalog.items:
        problems.append(f"{catalog.items} items planned, {annotated} annotated and {quarantined} quarantined")
    return VerifyReport(
        storage.uri, tuple(dict.fromkeys(problems)), catalog.items, annotated, quarantined, len(done), tuple(notes)
    )


def _checked(place: Storage, prefix: str, wanted: list[str] | None, notes: list[str]) -> _Generation:
    """Check one generation; `wanted` are the ids that the one before quarantined."""
    this = _Generation(place, read_plan(place), prefix)
    this.problems += changed_parts(place, this.plan)
    commits = _published(place, this.plan, this.problems)
    items, shards = ItemReader(place, this.plan), set(this.plan.shards)
    expected = None if wanted is None else set(wanted)
    for commit in commits:
        found = _shard_ids(this, commit)
        if commit.shard not in shards:
            continue
        try:
            column = items(commit.shard)["id"]
        except (CheckFailed, StorageNotFound) as error:
            this.problems.append(str(error))
            continue
        planned = column.to_pylist()
        this.planned += len(planned)
        this.hashes.append(pd.util.hash_array(np.array(planned, object), categorize=False))
        this.problems += _differences(commit.shard, planned, found)
        if expected is not None:
            this.foreign |= set(planned) - expected
            expected -= set(planned)
    _across_shards(this, expected)
    left = _leftovers(place, commits)
    if left:
        notes.append(f"{prefix}{left} files of attempts that did not count; harmless")
    return this


def _across_shards(this: _Generation, dropped: set[str] | None) -> None:
    """What no shard shows alone: ids planned twice, and those that a retry should and should not hold."""
    hashes = np.concatenate(this.hashes) if this.hashes else np.empty(0, np.uint64)
    repeated = len(hashes) - len(np.unique(hashes))
    if repeated:
        this.problems.append(f"{repeated} items are planned in more than one shard")
    if dropped:
        this.problems.append(f"{len(dropped)} quarantined items are not retried: {_some(dropped)}")
    if this.foreign:
        this.problems.append(f"{len(this.foreign)} items were not quarantined before: {_some(this.foreign)}")


def _shard_ids(this: _Generation, commit: CommitRecord) -> list[str]:
    """Ids of a shard's rows, with what is wrong with its files."""
    ok = _ids(this, commit, "data", commit.data, commit.ok)
    bad = _ids(this, commit, "quarantine", commit.quarantine, commit.quarantined)
    of_windows = _ids(this, commit, "windows", commit.windows, None)
    orphans = set(of_windows) - set(ok)
    if orphans:
        this.problems.append(f"shard {commit.shard}: windows of {len(orphans)} items without a row: {_some(orphans)}")
    this.annotated += len(ok)
    this.quarantined += bad
    return ok + bad


def _ids(this: _Generation, commit: CommitRecord, kind: str, record: FileRecord | None, count: int | None) -> list[str]:
    """Ids in one of a shard's files; `count` is what the record says of them, None where it says nothing."""
    if record is None:
        if count:
            this.problems.append(f"shard {commit.shard}: counts {count} rows of {kind} but names no file")
        return []
    try:
        table: pa.Table = read_file(this.storage, record)
    except (CheckFailed, StorageNotFound, pa.ArrowInvalid) as error:
        this.problems.append(str(error))
        return []
    if not table.schema.equals(_FOLDERS[kind]):
        this.problems.append(f"{record.path}: its columns are not those of this schema version")
        return []
    if table.num_rows != record.rows or count not in {None, table.num_rows}:
        this.problems.append(f"{record.path}: {table.num_rows} rows, recorded {record.rows}, counted {count}")
    if set(table.column("id").to_pylist()) and "shard" in table.column_names:
        stamps = set(zip(table["run_id"].to_pylist(), table["shard"].to_pylist(), strict=True))
        if stamps != {(commit.run_id, commit.shard)}:
            this.problems.append(f"{record.path}: holds rows of another run or shard")
    return list(table.column("id").to_pylist())


def _published(storage: Storage, plan: Plan, problems: list[str]) -> list[CommitRecord]:
    """The shards to check: the manifest's, or those committed so far; with what is wrong among them."""
    recorded = _recorded(storage, problems)
    problems += [f"shard {shard}: not committed" for shard in plan.shards if shard not in recorded]
    problems += [f"shard {shard}: not in the plan" for shard in sorted(recorded.keys() - set(plan.shards))]
    try:
        manifest = read_manifest(storage)
    except UsageError as error:
        problems.append(str(error))
        return list(recorded.values())
    if (manifest.run_id, manifest.plan_fingerprint) != (plan.run_id, plan.fingerprint):
        problems.append(f"{MANIFEST_FILE}: belongs to another plan than plan.json")
    listed = [commit.shard for commit in manifest.shards]
    if listed != plan.shards:
        problems.append(f"{MANIFEST_FILE}: lists {len(listed)} shards, not the plan's {len(plan.shards)}")
    if manifest.totals != add_up(manifest.shards):
        problems.append(f"{MANIFEST_FILE}: its totals are not the sum of its shards")
    if manifest.totals.items != plan.catalog.items:
        problems.append(f"{MANIFEST_FILE}: counts {manifest.totals.items} items, the plan {plan.catalog.items}")
    for commit in manifest.shards:
        if recorded.get(commit.shard, commit) != commit:
            problems.append(f"shard {commit.shard}: its commit record and {MANIFEST_FILE} differ")
    return list(manifest.shards)


def _recorded(storage: Storage, problems: list[str]) -> dict[str, CommitRecord]:
    records = {}
    for shard in sorted(committed_shards(storage)):
        try:
            records[shard] = read_commit(storage, shard)
        except CheckFailed as error:
            problems.append(str(error))
    return records


def _leftovers(storage: Storage, commits: list[CommitRecord]) -> int:
    """Files of rows that no commit names: of a crash before the record, or of the second of two writers."""
    named = {record.path for commit in commits for record in (commit.data, commit.quarantine, commit.windows) if record}
    return sum(entry.path not in named for folder in _FOLDERS for entry in storage.list(f"{folder}/"))


def _differences(shard: str, planned: list[str], found: list[str]) -> list[str]:
    lost, extra = set(planned) - set(found), set(found) - set(planned)
    twice = {identity for identity, count in Counter(found).items() if count > 1}
    kinds = (("missing", lost), ("not in the plan", extra), ("more than once", twice))
    return [f"shard {shard}: {len(ids)} items {kind}: {_some(ids)}" for kind, ids in kinds if ids]


def _some(ids: set[str]) -> str:
    return ", ".join(sorted(ids)[:_IDS_SHOWN])

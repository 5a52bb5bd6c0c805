"""Whether every byte of a run is right: digests, schemas, counts, and every planned item exactly once."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.commit import CommitRecord, committed_shards, read_commit
from mmva_platform.annotation.plan import ItemReader, Plan, read_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, add_up, read_file, read_manifest
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, StorageNotFound, open_storage

_IDS_SHOWN: Final = 5


@dataclass(frozen=True)
class VerifyReport:
    """Every problem found, one line each; none means that every item of the catalog stands exactly once."""

    out: str
    problems: tuple[str, ...]
    items: int
    annotated: int
    quarantined: int

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
        if self.ok:
            return f"{self.out}: verified, {balance}"
        return "\n".join([f"{self.out}: {len(self.problems)} problems ({balance} found)", *self.problems])


def verify(out: str, settings: Settings) -> VerifyReport:
    """Recompute everything from the bytes: digests, schemas, counts, and every planned id exactly once.

    Raises:
        UsageError: If there is no run at all; what is wrong with one is a problem in the report.
    """
    storage = open_storage(out, settings.storage)
    plan = read_plan(storage)
    problems: list[str] = []
    commits = _published(storage, plan, problems)
    items = ItemReader(storage, plan)
    planned_shards = set(plan.shards)
    annotated = quarantined = 0
    for commit in commits:
        ok_ids = _checked_ids(storage, commit, "data", problems)
        bad_ids = _checked_ids(storage, commit, "quarantine", problems)
        annotated, quarantined = annotated + len(ok_ids), quarantined + len(bad_ids)
        if commit.shard not in planned_shards:
            continue
        try:
            planned = items(commit.shard)["id"].to_pylist()
        except (CheckFailed, StorageNotFound) as error:
            problems.append(str(error))
        else:
            problems += _differences(commit.shard, planned, ok_ids + bad_ids)
    return VerifyReport(storage.uri, tuple(dict.fromkeys(problems)), plan.catalog.items, annotated, quarantined)


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


def _checked_ids(storage: Storage, commit: CommitRecord, kind: str, problems: list[str]) -> list[str]:
    """Ids of one of a shard's files, with what is wrong with the file."""
    record, count, schema = {
        "data": (commit.data, commit.ok, ANNOTATION_SCHEMA),
        "quarantine": (commit.quarantine, commit.quarantined, QUARANTINE_SCHEMA),
    }[kind]
    if record is None:
        if count:
            problems.append(f"shard {commit.shard}: counts {count} rows of {kind} but names no file")
        return []
    try:
        table: pa.Table = read_file(storage, record)
    except (CheckFailed, StorageNotFound, pa.ArrowInvalid) as error:
        problems.append(str(error))
        return []
    if not table.schema.equals(schema):
        problems.append(f"{record.path}: its columns are not those of this schema version")
        return []
    if not table.num_rows == record.rows == count:
        problems.append(f"{record.path}: {table.num_rows} rows, recorded {record.rows}, counted {count}")
    return list(table.column("id").to_pylist())


def _differences(shard: str, planned: list[str], found: list[str]) -> list[str]:
    lost, extra = set(planned) - set(found), set(found) - set(planned)
    twice = {identity for identity, count in Counter(found).items() if count > 1}
    kinds = (("missing", lost), ("not in the plan", extra), ("more than once", twice))
    return [
        f"shard {shard}: {len(ids)} items {kind}: {', '.join(sorted(ids)[:_IDS_SHOWN])}" for kind, ids in kinds if ids
    ]

"""Whether every byte of an annotation is right: digests, schemas, counts, and every planned item exactly once.

All generations are checked, a shard at a time, on the cluster if there are many shards. The driver keeps counts, eight
bytes an item, and the ids of quarantined items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmva.errors import CheckFailed, UsageError
from mmva_platform import bulk
from mmva_platform.annotation.commit import CommitRecord, committed_shards, read_commit
from mmva_platform.annotation.plan import PLAN_FILE, Plan, changed_parts, read_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, add_up, read_manifest, retry_folder
from mmva_platform.annotation.verify_shard import FOLDERS, ShardFindings, ShardVerifier, some
from mmva_platform.cluster import ray_session
from mmva_platform.progress import progress
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

_CLUSTER_FROM = 64  # shards; fewer are read sooner than Ray starts


@dataclass(frozen=True)
class VerifyReport:
    """Every problem found, one line each. Without problems every item of the catalog is there exactly once.

    Attributes:
        out: The run.
        problems: What is wrong.
        items: The catalog's.
        annotated: Rows found in all generations.
        quarantined: Rows found in the last.
        generations: The run and its published retries.
        notes: Worth knowing and no fault: files that a crash left behind, a retry under way.
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
    """What was found in one generation."""

    problems: list[str] = field(default_factory=list)
    hashes: list[np.ndarray[Any, np.dtype[np.uint64]]] = field(default_factory=list)
    annotated: int = 0
    quarantined: list[str] = field(default_factory=list)
    planned: set[str] = field(default_factory=set)  # of a retry only, which holds the quarantine of the one before


def verify(out: str, settings: Settings) -> VerifyReport:
    """Compute everything again from the bytes: digests, schemas, counts, and every planned id exactly once.

    Raises:
        UsageError: If there is no run at all; faults of a run are problems in the report.
        ShardsFailedError, StorageError: If its files cannot be read.
    """
    storage = open_storage(out, settings.storage)
    catalog = read_plan(storage).catalog
    problems: list[str] = []
    notes: list[str] = []
    done: list[_Generation] = []
    place: Storage = storage
    while not done or place.exists(MANIFEST_FILE):
        prefix = f"{retry_folder(len(done))}: " if done else ""
        found = _checked(place, settings, prefix, done[-1].quarantined if done else None, notes)
        problems += [prefix + problem for problem in found.problems]
        done.append(found)
        place = open_storage(storage.join(retry_folder(len(done))), settings.storage)
    if place.exists(PLAN_FILE):
        notes.append(f"{retry_folder(len(done))}: not published; `mmva annotations retry` again finishes it")
    annotated, quarantined = sum(each.annotated for each in done), len(done[-1].quarantined)
    if not problems and annotated + quarantined != catalog.items:
        problems.append(f"{catalog.items} items planned, {annotated} annotated and {quarantined} quarantined")
    return VerifyReport(
        storage.uri, tuple(dict.fromkeys(problems)), catalog.items, annotated, quarantined, len(done), tuple(notes)
    )


def _checked(
    place: Storage, settings: Settings, prefix: str, retried: list[str] | None, notes: list[str]
) -> _Generation:
    """Check one generation; `retried` are the ids that the one before quarantined, None for the run itself."""
    plan = read_plan(place)
    this = _Generation(problems=changed_parts(place, plan))
    commits = _published(place, plan, this.problems)
    planned = set(plan.shards)
    shards = [
        {"shard": commit.shard, "commit": commit, "planned": commit.shard in planned, "with_ids": retried is not None}
        for commit in commits
    ]
    findings = _run(shards, place, plan, settings)
    for commit in commits:
        found = findings[commit.shard]
        this.problems += found.problems
        this.annotated += found.annotated
        this.quarantined += found.quarantined
        this.hashes.append(found.hash_N)
        this.planned |= found.planned
    _across_shards(this, retried)
    left = _leftovers(place, commits)
    if left:
        notes.append(f"{prefix}{left} files of attempts that did not count; harmless")
    return this


def _run(shards: list[dict[str, Any]], place: Storage, plan: Plan, settings: Settings) -> dict[str, ShardFindings]:
    findings: dict[str, ShardFindings] = {}
    with progress("verify", len(shards)) as advance:

        def collect(found: ShardFindings) -> None:
            findings[found.shard] = found
            advance()

        if len(shards) < _CLUSTER_FROM:
            verifier, attempt = ShardVerifier(place, plan), bulk.Attempt()
            for shard in shards:
                collect(verifier(shard, attempt))
        else:
            kwargs = {"place": place, "plan": plan}
            with ray_session(settings.cluster):
                bulk.run_pass(
                    shards, ShardVerifier, stage="verify", settings=settings, on_result=collect, kwargs=kwargs
                )
    return findings


def _across_shards(this: _Generation, retried: Sequence[str] | None) -> None:
    """Problems that no shard shows alone: ids planned twice, and a retry of other items than the quarantined ones."""
    hash_N = np.concatenate(this.hashes) if this.hashes else np.empty(0, np.uint64)
    repeated = len(hash_N) - len(np.unique(hash_N))
    if repeated:
        this.problems.append(f"{repeated} items are planned in more than one shard")
    if retried is None:
        return
    if dropped := set(retried) - this.planned:
        this.problems.append(f"{len(dropped)} quarantined items are not retried: {some(dropped)}")
    if foreign := this.planned - set(retried):
        this.problems.append(f"{len(foreign)} items were not quarantined before: {some(foreign)}")


def _published(storage: Storage, plan: Plan, problems: list[str]) -> list[CommitRecord]:
    """The shards to check: the manifest's, or those committed so far; with the problems among them."""
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
    """Commit records by shard, many read at a time; one that is damaged is a problem."""
    found: dict[str, CommitRecord] = {}
    for shard, record in zip(names := sorted(committed_shards(storage)), _records(storage, names), strict=True):
        if isinstance(record, CheckFailed):
            problems.append(str(record))
        else:
            found[shard] = record
    return found


def _records(storage: Storage, shards: Sequence[str]) -> list[CommitRecord | CheckFailed]:
    from concurrent.futures import ThreadPoolExecutor

    def read(shard: str) -> CommitRecord | CheckFailed:
        try:
            return read_commit(storage, shard)
        except CheckFailed as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(read, shards))


def _leftovers(storage: Storage, commits: Sequence[CommitRecord]) -> int:
    """Files of rows that no commit names: of a crash before the record, or of the second of two writers."""
    named = {record.path for commit in commits for record in (commit.data, commit.quarantine, commit.windows) if record}
    return sum(entry.path not in named for folder in FOLDERS for entry in storage.list(f"{folder}/"))

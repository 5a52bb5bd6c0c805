"""Checks every byte of a version: digests, schemas, counts, embeddings, and that every item is there exactly once.

Data files are checked shard by shard, on the cluster if there are many. Digests of ids are compared on disk, so the
driver's memory does not grow with the annotation.
"""

import dataclasses
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mmva.errors import CheckFailed, UsageError
from mmva_platform import bulk
from mmva_platform.annotation.plan.plan import Plan, changed_parts, plan_file, read_plan
from mmva_platform.annotation.plan.unique import UniqueIds
from mmva_platform.annotation.table.commit import CommitRecord, committed_shards, read_commit
from mmva_platform.annotation.table.delta import TableFile, latest_version
from mmva_platform.annotation.table.publish import VersionRecord, add_up, read_record
from mmva_platform.annotation.table.reader import Annotation, open_annotation
from mmva_platform.annotation.table.verify_shard import FileVerifier, Findings
from mmva_platform.cluster import own_cpus, ray_session
from mmva_platform.progress import progress
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

_CLUSTER_FROM: Final = 256  # units of work; checking fewer in threads takes less time than starting a cluster
_READERS: Final = 16


@dataclass(frozen=True)
class VerifyReport:
    """Every problem found. Without problems every item of the catalog is in the version exactly once."""

    out: str
    version: int | None  # None if nothing is published
    problems: tuple[str, ...]
    items: int  # that the version should have
    annotated: int = 0  # rows found
    quarantined: int = 0  # rows found
    notes: tuple[str, ...] = ()  # not problems: files that a crash left, an unfinished update

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return dataclasses.asdict(self) | {"ok": self.ok}

    def to_text(self) -> str:
        """The verdict, then every problem."""
        balance = f"{self.items} items = {self.annotated} annotated + {self.quarantined} quarantined"
        verdict = f"verified, {balance}" if self.ok else f"{len(self.problems)} problems ({balance} found)"
        return "\n".join([f"{self.out} version {self.version}: {verdict}", *self.problems, *self.notes])


def verify(out: str, settings: Settings, version: int | None = None) -> VerifyReport:
    """Check a version, the newest by default, from its bytes.

    Raises UsageError if there is no annotation or no such version, ShardsFailedError or StorageError if its files
    cannot be read.
    """
    storage = open_storage(out, settings.storage)
    if version is None and latest_version(storage) is None:
        plan = read_plan(storage)
        done = len(committed_shards(storage, 0) & set(plan.shards))
        problem = f"not published: {done} of {len(plan.shards)} shards are committed; `mmva annotations resume`"
        return VerifyReport(storage.uri, None, (problem,), plan.catalog.items)
    annotation = open_annotation(storage, version=version)
    plan = read_plan(storage, annotation.version)
    problems = changed_parts(storage, plan)
    commits = _commits(storage, plan, problems)
    record = _record(annotation, plan, commits, problems)
    findings = _run(_units(annotation, plan), storage, plan, settings)
    problems += [problem for found in findings for problem in found.problems]
    annotated, quarantined = (sum(getattr(found, name) for found in findings) for name in ("annotated", "quarantined"))
    if repeated := _repeated(findings):
        problems.append(f"{repeated} items are there more than once")
    items = record.items if record else plan.catalog.items
    if not problems and annotated + quarantined != items:
        problems.append(f"{items} items recorded, {annotated} annotated and {quarantined} quarantined")
    return VerifyReport(
        out=storage.uri,
        version=annotation.version,
        problems=tuple(dict.fromkeys(problems)),
        items=items,
        annotated=annotated,
        quarantined=quarantined,
        notes=tuple(_notes(annotation, commits)),
    )


def _units(annotation: Annotation, plan: Plan) -> list[dict[str, Any]]:
    """Files by the shard that made them; only those of this version's own shards are compared with its plan."""
    made_by: defaultdict[tuple[int, str], list[TableFile]] = defaultdict(list)
    for file in annotation.all_files:
        version, shard, _ = file.path.rpartition("/")[2].split("-", 2)
        made_by[int(version), shard].append(file)
    for shard in plan.shards:
        made_by.setdefault((plan.version, shard), [])  # also a shard without any file in the table
    return [
        {
            "shard": f"{version:06d}-{shard}",
            "files": [tuple(file) for file in files],
            "planned": shard if version == plan.version else None,
        }
        for (version, shard), files in sorted(made_by.items())
    ]


def _run(units: list[dict[str, Any]], storage: Storage, plan: Plan, settings: Settings) -> list[Findings]:
    findings: list[Findings] = []
    with progress("verify", len(units)) as advance:

        def collect(found: Findings) -> None:
            findings.append(found)
            advance()

        if len(units) < _CLUSTER_FROM:
            with ThreadPoolExecutor(own_cpus()) as pool:
                for found in pool.map(lambda unit: FileVerifier(storage, plan)(unit, bulk.Attempt()), units):
                    collect(found)
        else:
            kwargs = {"storage": storage, "plan": plan}
            with ray_session(settings.cluster):
                bulk.run_pass(units, FileVerifier, stage="verify", settings=settings, on_result=collect, kwargs=kwargs)
    return sorted(findings, key=lambda found: found.name)


def _repeated(findings: Sequence[Findings]) -> int:
    with tempfile.TemporaryDirectory(prefix="mmva-verify-") as folder:
        ids = UniqueIds(Path(folder))
        for found in findings:
            ids.add_digests(found.digest_N2)
        return len(ids.repeated())


def _record(
    annotation: Annotation, plan: Plan, commits: dict[str, CommitRecord], problems: list[str]
) -> VersionRecord | None:
    """Read the version's record; add its differences from plan, commit records and table to the problems."""
    try:
        record = read_record(annotation.storage, annotation.version)
    except (UsageError, CheckFailed) as error:
        problems.append(str(error))
        return None
    name = f"version {annotation.version}"
    if (record.run_id, record.plan_fingerprint) != (plan.run_id, plan.fingerprint):
        problems.append(f"{name}: its record belongs to another plan")
    if len(commits) == len(plan.shards) and record.totals != add_up(commits[shard] for shard in sorted(commits)):
        problems.append(f"{name}: its totals are not the sum of its commit records")
    made = {file.in_table for commit in commits.values() for file in commit.files}
    there = set(annotation.all_files)
    if lost := made - there:
        problems.append(f"{name}: {len(lost)} committed files are not in the table, such as {min(lost).path}")
    own = {file for file in there if file.path.rpartition("/")[2].startswith(f"{annotation.version:06d}-")}
    if foreign := own - made:
        problems.append(f"{name}: {len(foreign)} files that no commit names are in the table: {min(foreign).path}")
    return record


def _commits(storage: Storage, plan: Plan, problems: list[str]) -> dict[str, CommitRecord]:
    """Read the version's commit records by shard; add missing, damaged and unplanned ones to the problems."""

    def read(shard: str) -> CommitRecord | CheckFailed:
        try:
            return read_commit(storage, plan.version, shard)
        except CheckFailed as error:
            return error

    names = sorted(committed_shards(storage, plan.version))
    with ThreadPoolExecutor(_READERS) as pool:
        records = dict(zip(names, pool.map(read, names), strict=True))
    problems += [str(record) for record in records.values() if isinstance(record, CheckFailed)]
    planned = set(plan.shards)
    problems += [f"shard {shard}: not committed" for shard in plan.shards if shard not in records]
    problems += [f"shard {shard}: not in the plan" for shard in names if shard not in planned]
    return {name: record for name, record in records.items() if isinstance(record, CommitRecord) and name in planned}


def _notes(annotation: Annotation, commits: dict[str, CommitRecord]) -> list[str]:
    """Notes on files of this version that do not count, and on an unfinished version."""
    storage, notes = annotation.storage, []
    named = {file.path for commit in commits.values() for file in commit.files}
    mark = f"/{annotation.version:06d}-"
    left = sum(mark in entry.path and entry.path not in named for entry in storage.list("status="))
    if left:
        notes.append(f"{left} files of attempts that did not count; harmless, `mmva annotations clean` removes them")
    latest = latest_version(storage)
    if latest is not None and storage.exists(plan_file(latest + 1)):
        notes.append(f"version {latest + 1} is under way; `mmva annotations resume` finishes it")
    return notes

"""Publishes a version: writes its record, then makes one Delta commit over exactly the files of its commit records.

Both depend only on the plan and the commit records. So any process may publish, any number of times, and if it dies,
the next process finishes the work.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import Field, ValidationError

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.plan.plan import Base, Kind, ModelInfo, Plan, version_folder
from mmva_platform.annotation.table.commit import CommitRecord, summed
from mmva_platform.annotation.table.delta import (
    TableChange,
    TableFile,
    commit_version,
    files_of,
    is_published,
    open_table,
)
from mmva_platform.settings import Config
from mmva_platform.storage import Storage, StorageNotFound

HOW: Final = {
    "carried": "copied from the version before",
    "heads": "from stored embeddings",
    "same bytes": "with the same bytes as another item",
}


class Totals(Config):
    """Counts of a plan's items: items = ok + quarantined."""

    items: int
    ok: int
    quarantined: int
    by_modality: dict[str, int] = Field(description="annotated items of each modality")
    causes: dict[str, int] = Field(description="quarantined items of each cause")
    work: dict[str, int] = Field(description="items by how they were annotated; see ShardResult")
    seconds: dict[str, float] = Field(description="of all workers, by stage")


class VersionRecord(Config):
    """`version.json`: the origin of a version and its changes. The totals are those of its own shards only."""

    annotation_version: int
    version: int
    kind: Kind
    created_at: datetime
    run_id: str
    plan_fingerprint: str
    model: ModelInfo
    catalog: str
    items: int = Field(description="in the table, annotated and quarantined")
    totals: Totals
    base: Base | None


def add_up(commits: Iterable[CommitRecord]) -> Totals:
    """Totals of these shards."""
    commits = list(commits)
    return Totals(
        items=sum(commit.items for commit in commits),
        ok=sum(commit.ok for commit in commits),
        quarantined=sum(commit.quarantined for commit in commits),
        by_modality=dict(sorted(summed(commit.by_modality for commit in commits).items())),
        causes=dict(Counter(summed(commit.causes for commit in commits)).most_common()),
        work=dict(sorted(summed(commit.work for commit in commits).items())),
        seconds=summed(commit.seconds for commit in commits),
    )


def publish(storage: Storage, plan: Plan, commits: Iterable[CommitRecord]) -> VersionRecord:
    """Publish a version whose shards are all committed. If a concurrent driver published first, its commit counts.

    Raises CheckFailed, and publishes nothing, if a shard is missing or foreign, the counts do not balance, or another
    program wrote this version of the table; StorageError if it cannot be written: publishing again finishes it.
    """
    ordered = tuple(sorted(commits, key=lambda commit: commit.shard))
    if [commit.shard for commit in ordered] != plan.shards or {commit.run_id for commit in ordered} - {plan.run_id}:
        raise CheckFailed(f"{storage.uri}: the committed shards are not the plan's; run `mmva annotations verify`")
    restores = plan.base.restores if plan.base else None
    before = files_of(open_table(storage, plan.version - 1 if restores is None else restores)) if plan.version else []
    replaced = _replaced(storage, plan, before)
    totals = add_up(ordered)
    kept = sum(file.rows for file in before) - sum(file.rows for file in replaced)
    if not totals.ok + totals.quarantined == totals.items == sum(plan.rows) == plan.catalog.items - kept:
        raise CheckFailed(
            f"{storage.uri}: version {plan.version} should have {plan.catalog.items} items, but {kept} are kept, "
            f"{sum(plan.rows)} planned, {totals.ok} annotated and {totals.quarantined} quarantined"
        )
    record = VersionRecord(
        annotation_version=plan.annotation_version,
        version=plan.version,
        kind=plan.kind,
        created_at=plan.created_at,
        run_id=plan.run_id,
        plan_fingerprint=plan.fingerprint,
        model=plan.model,
        catalog=plan.catalog.uri,
        items=plan.catalog.items,
        totals=totals,
        base=plan.base,
    )
    storage.put_if_absent(_record_file(plan.version), record.model_dump_json(indent=1).encode())
    added = [file.in_table for commit in ordered for file in commit.files]
    notes = {"mmvaKind": plan.kind, "mmvaModel": f"{plan.model.name} {plan.model.version or ''}".strip()}
    change = TableChange(plan.version, plan.run_id, added, replaced, plan.created_at, notes, restores)
    commit_version(storage, change)
    return read_record(storage, plan.version)


def read_record(storage: Storage, version: int) -> VersionRecord:
    """The record of a published version. Raises UsageError if it is not published or was made by another program."""
    path = _record_file(version)
    try:
        record = VersionRecord.model_validate_json(storage.read(path))
    except StorageNotFound:
        raise UsageError(f"{storage.uri}: version {version} is not published ({path} is missing)") from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UsageError(f"{storage.join(path)}: not a record of this mmva ({reason})") from None
    if not is_published(storage, version):
        raise UsageError(f"{storage.uri}: version {version} is not published; `mmva annotations resume` finishes it")
    return record


def _replaced(storage: Storage, plan: Plan, before: Sequence[TableFile]) -> list[TableFile]:
    names = set(plan.base.replaced) if plan.base else set()
    found = [file for file in before if file.path in names]
    if len(found) != len(names):
        raise CheckFailed(
            f"{storage.uri}: version {plan.version - 1} of the table lacks files that the plan of version "
            f"{plan.version} replaces"
        )
    return found


def _record_file(version: int) -> str:
    return f"{version_folder(version)}/version.json"


@dataclass(frozen=True)
class AnnotationSummary:
    """Result of a version's plan: items = ok + quarantined."""

    out: str
    version: int
    run_id: str
    items: int  # planned: catalog rows without repeated ids and without items kept by reference
    ok: int
    quarantined: int
    by_modality: dict[str, int]  # annotated items
    causes: dict[str, int]  # quarantined items
    duplicates: int  # catalog rows left out because an earlier row has their id
    skipped: dict[str, int]  # files that are not media by extension, unlisted files by reason
    shards: int
    resumed_shards: int  # committed before this call
    seconds: float  # of this call
    work: dict[str, int]  # items by how they were annotated; see ShardResult
    changes: dict[str, int] | None = None  # unchanged, new, changed and removed items; None for version 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """A few lines for a person."""
        kinds = ", ".join(f"{count} {name}" for name, count in self.by_modality.items())
        resumed = f", {self.resumed_shards} of them from before" if self.resumed_shards else ""
        lines = [] if self.changes is None else [", ".join(f"{n} {kind}" for kind, n in self.changes.items())]
        lines += [
            f"{self.items} items: {self.ok} annotated ({kinds}), {self.quarantined} quarantined",
            *(f"  {count} {cause}" for cause, count in self.causes.items()),
            *(f"  {self.work[how]} {words}" for how, words in HOW.items() if self.work.get(how)),
            f"{self.shards} shards{resumed}, {self.seconds:.1f} s",
        ]
        if self.duplicates:
            lines.append(f"{self.duplicates} rows left out: an earlier row has their id")
        if self.skipped:
            lines.append("skipped: " + ", ".join(f"{n} {kind}" for kind, n in self.skipped.items()))
        return "\n".join([*lines, f"{self.out} version {self.version}"])


def summarize(
    out: str, record: VersionRecord, plan: Plan | None, *, resumed: int = 0, seconds: float
) -> AnnotationSummary:
    """The summary of a call, from the newest version's record and plan; `plan` is None if there was nothing to do."""
    totals = record.totals if plan else add_up([])
    first_look = plan is not None and plan.kind != "retry"
    return AnnotationSummary(
        out=out,
        version=record.version,
        run_id=record.run_id,
        duplicates=plan.catalog.duplicates if plan and first_look else 0,
        skipped=plan.catalog.skipped if plan and first_look else {},
        shards=len(plan.shards) if plan else 0,
        resumed_shards=resumed,
        seconds=round(seconds, 2),
        changes=changes_of(plan.base) if plan and plan.base else None,
        **totals.model_dump(exclude={"seconds"}),
    )


def changes_of(base: Base) -> dict[str, int]:
    """Numbers of unchanged, new, changed and removed items of a version."""
    return {name: getattr(base, name) for name in ("unchanged", "new", "changed", "removed")}

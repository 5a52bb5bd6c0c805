"""The result of annotate, resume or retry, for a person and for a machine."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from mmva_platform.annotation.plan import Base, Plan
from mmva_platform.annotation.publish import VersionRecord, add_up

HOW: Final = {
    "carried": "copied from the version before",
    "heads": "from stored embeddings",
    "same bytes": "with the same bytes as another item",
}


@dataclass(frozen=True)
class AnnotationSummary:
    """Result of a version's plan: items = ok + quarantined."""

    out: str
    version: int
    run_id: str
    items: int  # planned: catalog rows with an id of their own, without those kept by reference
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
    """The summary of a call; `record` and `plan` are those of the newest version, `plan` is None if there was nothing
    to do.
    """
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
    """How many items of a version are as before, new, changed or removed."""
    return {name: getattr(base, name) for name in ("unchanged", "new", "changed", "removed")}

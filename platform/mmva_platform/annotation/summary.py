"""The result of annotate, resume or retry, for a person and for a machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.publish import Totals

_HOW: Final = {
    "carried": "carried over unchanged",
    "heads": "from stored embeddings",
    "same bytes": "with the same bytes as another item",
}


@dataclass(frozen=True)
class AnnotationSummary:
    """What became of a catalog: items = ok + quarantined.

    Attributes:
        out: Where the annotations are.
        run_id: The run's name.
        items: Catalog rows with an id of their own.
        ok: Annotated items.
        quarantined: Items that could not be annotated.
        by_modality: Annotated items of each modality.
        causes: Quarantined items of each cause.
        duplicates: Catalog rows left out because an earlier row has their id.
        skipped: Files of the catalog's folder that are not media, by extension.
        shards: All shards of the run.
        resumed_shards: Shards that were committed before this call.
        seconds: Of this call.
        work: Items by how they were annotated; see ShardResult.
    """

    out: str
    run_id: str
    items: int
    ok: int
    quarantined: int
    by_modality: dict[str, int]
    causes: dict[str, int]
    duplicates: int
    skipped: dict[str, int]
    shards: int
    resumed_shards: int
    seconds: float
    work: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """A few lines for a person."""
        kinds = ", ".join(f"{count} {name}" for name, count in self.by_modality.items())
        resumed = f", {self.resumed_shards} of them from before" if self.resumed_shards else ""
        lines = [
            f"{self.items} items: {self.ok} annotated ({kinds}), {self.quarantined} quarantined",
            *(f"  {count} {cause}" for cause, count in self.causes.items()),
            *(f"  {self.work[how]} {words}" for how, words in _HOW.items() if self.work.get(how)),
            f"{self.shards} shards{resumed}, {self.seconds:.1f} s",
        ]
        if self.duplicates:
            lines.append(f"{self.duplicates} rows left out: an earlier row has their id")
        if self.skipped:
            lines.append("skipped, not media: " + ", ".join(f"{n} {kind}" for kind, n in self.skipped.items()))
        return "\n".join([*lines, self.out])


def summarize(out: str, plan: Plan, totals: Totals | None, *, resumed: int, seconds: float) -> AnnotationSummary:
    """The summary of a call.

    Args:
        out: The run.
        plan: Of the run, or of its retry.
        totals: Of the published manifest; None if there was nothing to do.
        resumed: Shards that were committed before this call.
        seconds: Of this call.
    """
    retried = plan.generation > 1 or totals is None
    return AnnotationSummary(
        out=out,
        run_id=plan.run_id,
        items=totals.items if totals else 0,
        ok=totals.ok if totals else 0,
        quarantined=totals.quarantined if totals else 0,
        by_modality=totals.by_modality if totals else {},
        causes=totals.causes if totals else {},
        duplicates=0 if retried else plan.catalog.duplicates,
        skipped={} if retried else plan.catalog.skipped,
        shards=len(plan.shards) if totals else 0,
        resumed_shards=resumed,
        seconds=round(seconds, 2),
        work=totals.work if totals else {},
    )

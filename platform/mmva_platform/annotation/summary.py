"""What a call of annotate or retry came to, for a person and for a machine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Final

_HOW: Final = {
    "carried": "carried over as they stood",
    "heads": "from stored embeddings",
    "same bytes": "of the same bytes as another",
}


@dataclass(frozen=True)
class AnnotationSummary:
    """What became of a catalog: items = ok + quarantined.

    Attributes:
        out: Where the annotations stand.
        run_id: The run's name.
        items: Catalog rows with an id of their own.
        ok: Annotated items.
        quarantined: Items that could not be annotated.
        by_modality: Annotated items of each modality.
        causes: Quarantined items of each cause.
        duplicates: Catalog rows left out because an earlier row has their id.
        skipped: Files of the catalog's folder that are no media, by extension.
        shards: All shards of the run.
        resumed_shards: Shards that were committed before this call.
        seconds: Of this call.
        work: Items by how they came about; see ShardResult.
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
    work: dict[str, int] = field(default_factory=dict)

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
            lines.append(f"{self.duplicates} rows left out: their id stands on an earlier row")
        if self.skipped:
            lines.append("no media, skipped: " + ", ".join(f"{n} {kind}" for kind, n in self.skipped.items()))
        return "\n".join([*lines, self.out])

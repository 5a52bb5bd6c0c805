"""How far a run is, as its directory tells it; works while it runs, after a crash and when it is done."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mmva_platform.annotation.commit import committed_shards, read_commit
from mmva_platform.annotation.plan import ModelInfo, read_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, Totals, add_up
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage


@dataclass(frozen=True)
class RunStatus:
    """How far a run is; `totals` counts the committed shards only."""

    out: str
    run_id: str
    model: ModelInfo
    published: bool
    shards: int
    shards_done: int
    items: int
    totals: Totals

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return values | {"model": self.model.model_dump(), "totals": self.totals.model_dump()}

    def to_text(self) -> str:
        """A few lines for a person."""
        state = "published" if self.published else "not published yet; the same `mmva annotate` again goes on from here"
        lines = [
            f"{self.out}: {state}",
            f"model {self.model.name} {self.model.version or ''} ({self.model.digest[:12]})".replace("  ", " "),
            f"{self.shards_done} of {self.shards} shards, {self.totals.items} of {self.items} items",
            f"{self.totals.ok} annotated, {self.totals.quarantined} quarantined",
            *(f"  {count} {cause}" for cause, count in self.totals.causes.items()),
        ]
        return "\n".join(lines)


def status(out: str, settings: Settings) -> RunStatus:
    """How far a run is, from its directory alone; works while it runs and after a crash.

    Raises:
        UsageError: If there is no run.
        CheckFailed: If a commit record is damaged.
    """
    storage = open_storage(out, settings.storage)
    plan = read_plan(storage)
    done = sorted(committed_shards(storage) & set(plan.shards))
    return RunStatus(
        out=storage.uri,
        run_id=plan.run_id,
        model=plan.model,
        published=storage.exists(MANIFEST_FILE),
        shards=len(plan.shards),
        shards_done=len(done),
        items=plan.catalog.items,
        totals=add_up(read_commit(storage, shard) for shard in done),
    )

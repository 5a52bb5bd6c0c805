"""How far a run is, from its directory alone: while it runs, after a crash and when it is done."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mmva_platform.annotation.commit import committed_shards, read_commits
from mmva_platform.annotation.heartbeats import Heartbeats, read_heartbeats
from mmva_platform.annotation.plan import PLAN_FILE, ModelInfo, read_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, Totals, add_up, retry_folder
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage


@dataclass(frozen=True)
class GenerationStatus:
    """How far a run or one of its retries is.

    Attributes:
        folder: Relative to the run; empty for the run itself.
        published: Whether readers see it.
        shards: Planned shards.
        shards_done: Committed ones.
        items: Planned items.
        totals: Of the committed shards.
        heartbeats: The shards that workers had under way when a driver last looked; None once it is published.
    """

    folder: str
    published: bool
    shards: int
    shards_done: int
    items: int
    totals: Totals
    heartbeats: Heartbeats | None

    @property
    def items_per_worker_s(self) -> float | None:
        """Items in a second of one worker, all stages together; None before the first commit."""
        seconds = sum(self.totals.seconds.values())
        return self.totals.items / seconds if seconds else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        heartbeats = self.heartbeats and self.heartbeats.model_dump()
        figures = {"totals": self.totals.model_dump(), "items_per_worker_s": self.items_per_worker_s}
        return values | figures | {"heartbeats": heartbeats}

    def to_lines(self) -> list[str]:
        """A few lines for a person."""
        totals = self.totals
        lines = [
            f"{self.shards_done} of {self.shards} shards, {totals.items} of {self.items} items",
            f"{totals.ok} annotated, {totals.quarantined} quarantined",
            *(f"  {count} {cause}" for cause, count in totals.causes.items()),
        ]
        if totals.work:
            lines.append("work: " + ", ".join(f"{count} {name}" for name, count in totals.work.items() if count))
        if self.items_per_worker_s is not None:
            stages = ", ".join(f"{name} {value:.1f} s" for name, value in totals.seconds.items())
            lines.append(f"{self.items_per_worker_s:.1f} items/s a worker ({stages})")
        if self.heartbeats is not None:
            lines += self.heartbeats.to_lines()
        return lines


@dataclass(frozen=True)
class RunStatus:
    """How far a run and its retries are.

    Attributes:
        out: The run.
        run_id: Its name.
        model: What it annotates with.
        generations: The run itself, then its retries; the last may be under way.
    """

    out: str
    run_id: str
    model: ModelInfo
    generations: tuple[GenerationStatus, ...]

    @property
    def annotated(self) -> int:
        """Items annotated so far, in all generations."""
        return sum(generation.totals.ok for generation in self.generations)

    @property
    def quarantined(self) -> int:
        """Items in quarantine now: a retry counts once it is published."""
        counted = [generation for generation in self.generations if generation.published or not generation.folder]
        return counted[-1].totals.quarantined

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json; the run's own figures are at the top, too."""
        own = self.generations[0].to_json()
        del own["folder"]
        return own | {
            "out": self.out,
            "run_id": self.run_id,
            "model": self.model.model_dump(),
            "annotated": self.annotated,
            "quarantined": self.quarantined,
            "generations": [generation.to_json() for generation in self.generations],
        }

    def to_text(self) -> str:
        """A few lines for a person."""
        first, *retries = self.generations
        state = "published" if first.published else "not published yet; `mmva annotations resume` finishes it"
        lines = [
            f"{self.out}: {state}",
            f"model {self.model.name} {self.model.version or ''} ({self.model.digest[:12]})".replace("  ", " "),
            *first.to_lines(),
        ]
        for retry in retries:
            unfinished = "not published yet; `mmva annotations retry` again finishes it"
            lines.append(f"{retry.folder}: {'published' if retry.published else unfinished}")
            lines += [f"  {line}" for line in retry.to_lines()]
        if retries:
            lines.append(f"together {self.annotated} annotated, {self.quarantined} in quarantine")
        return "\n".join(lines)


def status(out: str, settings: Settings) -> RunStatus:
    """How far a run is, from its directory alone: its plan, the commits' records, the last heartbeats.

    Raises:
        UsageError: If there is no run.
        CheckFailed: If a commit record is damaged.
    """
    storage = open_storage(out, settings.storage)
    plan = read_plan(storage)
    found = [_generation(storage, "")]
    while storage.exists(f"{retry_folder(len(found))}/{PLAN_FILE}"):
        folder = retry_folder(len(found))
        found.append(_generation(open_storage(storage.join(folder), settings.storage), folder))
    return RunStatus(storage.uri, plan.run_id, plan.model, tuple(found))


def _generation(storage: Storage, folder: str) -> GenerationStatus:
    plan = read_plan(storage)
    done = sorted(committed_shards(storage) & set(plan.shards))
    published = storage.exists(MANIFEST_FILE)
    return GenerationStatus(
        folder=folder,
        published=published,
        shards=len(plan.shards),
        shards_done=len(done),
        items=plan.catalog.items,
        totals=add_up(read_commits(storage, done)),
        heartbeats=None if published else read_heartbeats(storage),
    )

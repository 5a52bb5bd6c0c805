"""Progress and history of an annotation, read from its directory: during a run, after a crash, and at the end."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field, ValidationError

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.plan.plan import Kind, ModelInfo, plan_file, read_plan, version_folder
from mmva_platform.annotation.table.commit import CommitRecord, committed_shards, read_commits
from mmva_platform.annotation.table.delta import is_published, latest_version
from mmva_platform.annotation.table.publish import Totals, VersionRecord, add_up, changes_of, read_record
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.bulk import InFlight
from mmva_platform.settings import Config, Settings
from mmva_platform.storage import Storage, StorageError, StorageNotFound, open_storage

logger = logging.getLogger(__name__)
_EVERY_S: Final = 30.0
_SHOWN: Final = 5


class Heartbeats(Config):
    """Content of heartbeats.json."""

    at: float = Field(description="Unix time")
    in_flight: tuple[InFlight, ...]

    def to_lines(self) -> list[str]:
        """The number of running shards, and those that have run for the longest time."""
        oldest = sorted(self.in_flight, key=lambda shard: -shard.seconds)[:_SHOWN]
        lines = [f"{len(self.in_flight)} shards under way {time.time() - self.at:.0f} s ago"]
        return lines + [
            f"  {each.shard} on node {each.node[:12]}: {each.step}, for {each.seconds:.0f} s" for each in oldest
        ]


@dataclass(frozen=True)
class RunStatus:
    """State of a version: the unpublished one, or the newest published one."""

    out: str
    version: int
    kind: Kind
    run_id: str
    model: ModelInfo
    published: bool  # readers see it
    shards: int  # planned
    shards_done: int
    items: int  # planned, without those kept by reference
    totals: Totals  # of the committed shards
    heartbeats: Heartbeats | None  # shards that ran when a driver last looked; None once the version is published
    annotated: int  # items that readers see now
    quarantined: int  # items that readers see in quarantine

    @property
    def items_per_worker_s(self) -> float | None:
        """Items per second of one worker, all stages together; None before the first commit."""
        seconds = sum(self.totals.seconds.values())
        return self.totals.items / seconds if seconds else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        models = {name: part and part.model_dump() for name, part in vars(self).items() if isinstance(part, Config)}
        return vars(self) | models | {"items_per_worker_s": self.items_per_worker_s}

    def to_text(self) -> str:
        """A few lines for a person."""
        totals, model = self.totals, self.model
        state = "published" if self.published else "not published yet; `mmva annotations resume` finishes it"
        lines = [
            f"{self.out}: version {self.version} ({self.kind}), {state}",
            f"model {model.name} {model.version or ''} ({model.digest[:12]})".replace("  ", " "),
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
        lines.append(f"readers see {self.annotated} annotated items, {self.quarantined} in quarantine")
        return "\n".join(lines)


def status(
    out: str, settings: Settings, version: int | None = None, known: dict[str, CommitRecord] | None = None
) -> RunStatus:
    """State of a version, by default of the unpublished one, or else of the newest published one.

    `known` holds commit records by shard that earlier calls for this version have read; new ones are added to it.

    Raises UsageError if there is no annotation, CheckFailed if a commit record is damaged or another program wrote the
    newest version.
    """
    storage = open_storage(out, settings.storage)
    latest = latest_version(storage)
    if version is None:
        coming = 0 if latest is None else latest + 1
        version = coming if latest is None or storage.exists(plan_file(coming)) else latest
    seen = None if latest is None else open_annotation(storage)
    plan = read_plan(storage, version)
    known = {} if known is None else known
    done = sorted(committed_shards(storage, version) & set(plan.shards))
    new = [shard for shard in done if shard not in known]
    known.update(zip(new, read_commits(storage, version, new), strict=True))
    published = is_published(storage, version)
    return RunStatus(
        out=storage.uri,
        version=version,
        kind=plan.kind,
        run_id=plan.run_id,
        model=plan.model,
        published=published,
        shards=len(plan.shards),
        shards_done=len(done),
        items=sum(plan.rows),
        totals=add_up(known[shard] for shard in done),
        heartbeats=None if published else read_heartbeats(storage, version),
        annotated=seen.count("ok") if seen else 0,
        quarantined=seen.count("quarantined") if seen else 0,
    )


@dataclass(frozen=True)
class History:
    """All versions of an annotation, from the first to the newest; for one without a record, a text with the reason."""

    out: str
    versions: tuple[VersionRecord | str, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values for --json."""
        return [
            {"version": number, "problem": each} if isinstance(each, str) else each.model_dump(mode="json")
            for number, each in enumerate(self.versions)
        ]

    def to_text(self) -> str:
        """A line for each version."""
        return "\n".join(_line(number, each) for number, each in enumerate(self.versions))


def history(out: str, settings: Settings) -> History:
    """The origin, model and changes of each version. Raises UsageError if nothing is published."""
    storage = open_storage(out, settings.storage)
    latest = latest_version(storage)
    if latest is None:
        raise UsageError(f"{storage.uri}: no version is published")
    return History(storage.uri, tuple(_entry(storage, number) for number in range(latest + 1)))


def _entry(storage: Storage, version: int) -> VersionRecord | str:
    try:
        return read_record(storage, version)
    except (UsageError, CheckFailed):
        return "made by another program"


def _line(number: int, version: VersionRecord | str) -> str:
    if isinstance(version, str):
        return f"{number}  {version}"
    model = f"{version.model.name} {version.model.version or version.model.digest[:12]}"
    changes = changes_of(version.base) if version.base else {"annotated": version.totals.ok}
    counts = ", ".join(f"{count} {kind}" for kind, count in changes.items())
    when = version.created_at.strftime("%Y-%m-%d %H:%M")
    return f"{number}  {when}  {version.kind:<8}  {model}  {version.items} items ({counts})  {version.catalog}"


class HeartbeatFile:
    """Writes heartbeats.json every 30 s; if that fails, the run continues."""

    def __init__(self, storage: Storage, version: int) -> None:
        self._storage, self._path, self._written = storage, _path(version), 0.0

    def __call__(self, in_flight: Sequence[InFlight]) -> None:
        """Write the running shards, unless they were written a short time ago."""
        now = time.time()
        if now - self._written < _EVERY_S:
            return
        self._written = now
        try:
            self._storage.write(self._path, Heartbeats(at=now, in_flight=tuple(in_flight)).model_dump_json().encode())
        except StorageError as error:
            logger.warning("%s", error)


def read_heartbeats(storage: Storage, version: int) -> Heartbeats | None:
    """The last heartbeats; None if no driver wrote any."""
    try:
        return Heartbeats.model_validate_json(storage.read(_path(version)))
    except (StorageNotFound, ValidationError):
        return None


def _path(version: int) -> str:
    return f"{version_folder(version)}/heartbeats.json"

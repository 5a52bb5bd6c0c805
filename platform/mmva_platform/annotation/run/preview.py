"""`annotate --plan`: describes what a call would do and estimates its time. Writes nothing to the output."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.filesize import decimal

from mmva.engines.calibration import fastest
from mmva.engines.choice import cache_of
from mmva.errors import UsageError
from mmva.inference.config import EngineInfo
from mmva.models.bundle import read_bundle_info
from mmva_platform.annotation.catalog.roots import AllowedRoots
from mmva_platform.annotation.options import AnnotateOptions
from mmva_platform.annotation.plan.plan import ModelInfo, Plan
from mmva_platform.annotation.plan.planning import shards_of
from mmva_platform.annotation.plan.shards import as_duration, seconds_per_unit
from mmva_platform.annotation.plan.spool import Spool, spooled
from mmva_platform.annotation.run.prepare import Request, look_up, towers_needed
from mmva_platform.annotation.table.status import status
from mmva_platform.cluster import own_cpus, ray_session
from mmva_platform.settings import Settings, validate

_START_S: Final = 15.0  # Ray and the workers' torch on an idle machine
_ROOTS_CHECKED: Final = 20_000
_SHOWN: Final = 3


@dataclass(frozen=True)
class PlanPreview:
    """What a call of annotate would do. For an existing run, values that need a listing are None."""

    out: str
    state: str  # "new", "resume" or "published"
    refused: tuple[str, ...]  # differences from the existing run, because of which the call would be refused
    catalog: str
    model: str  # name, version and digest
    items: dict[str, int]  # of the catalog, by modality
    items_left: int  # not yet committed
    skipped: dict[str, int]  # files that are left out, by reason
    duplicates: int  # rows that are left out because an earlier row has their id
    roots: tuple[str, ...]  # that media may be read from
    shards: int
    shards_left: int
    engines: dict[str, tuple[str, float | None]]  # tower -> engine, items/s of one worker; "" and None if unknown
    workers: int  # of the run
    problem: str | None  # why the cluster does not answer
    seconds: float | None  # estimate without the start-up; None if an engine was never measured
    outside: int | None = None  # items outside the roots, estimated from a sample of a large catalog
    bytes: int | None = None  # sum of the known sizes of files
    sizes_unknown: int | None = None  # number of files of unknown size

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """One line for each fact."""
        kinds = ", ".join(f"{count:,} {name}" for name, count in self.items.items())
        skipped = [f"{count:,} {kind}" for kind, count in sorted(self.skipped.items(), key=lambda entry: -entry[1])]
        left_out = [f"{self.duplicates:,} rows with an earlier row's id"] if self.duplicates else []
        unknown = f" and {self.sizes_unknown:,} files of unknown size" if self.sizes_unknown else ""
        lines = {
            "catalog": f"{self.catalog}: {sum(self.items.values()):,} items ({kinds})",
            "left out": "; ".join(left_out + [f"skipped {_some(skipped)}"] * bool(skipped)),
            "roots": _some(self.roots) + (f"; about {self.outside:,} items are outside" if self.outside else ""),
            "output": f"{self.out}: {self._progress()}",
            "refused": "; ".join(self.refused),
            "to fetch": "" if self.bytes is None else f"{decimal(self.bytes)}{unknown}",
            "model": self.model,
            "engines": "; ".join(f"{tower}: {_engine(*engine)}" for tower, engine in self.engines.items()),
            "workers": f"{self.workers}" + (f"; {self.problem}" if self.problem else ""),
            "time": self._time(),
        }
        return "\n".join(f"{name:<9} {text}" for name, text in lines.items() if text)

    def _progress(self) -> str:
        if self.state == "new":
            return f"new, {self.shards:,} shards"
        if self.state == "published":
            return "published, nothing left to do"
        done = self.shards - self.shards_left
        return f"{done:,} of {self.shards:,} shards done, {self.items_left:,} items left"

    def _time(self) -> str:
        if self.state == "published":
            return ""
        if self.seconds is None:
            return "no estimate: an engine has not been measured yet"
        return f"about {as_duration(self.seconds)}, and {as_duration(_START_S)} to start"


@dataclass(frozen=True)
class UpdatePreview:
    """What an update would do."""

    out: str
    version: int  # that it would make
    catalog: str
    model: str  # name, version and digest
    changes: dict[str, int]  # unchanged, new, changed and removed items
    kept: int  # items in data files that stay as they are
    copied: int  # items whose rows would be copied; with another model, its heads would run over their embeddings
    media: dict[str, int]  # items to annotate from their media, by modality; repeated ids count
    engines: dict[str, str]  # by tower; "" if it would be measured
    seconds: float | None  # of one worker, for `media`; None if an engine was never measured
    refused: str  # why media would have to be read again; empty if nothing refuses the update
    under_way: bool  # the plan exists; the same command finishes it

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """One line per fact that matters before the start."""
        media = ", ".join(f"{count:,} {name}" for name, count in self.media.items() if count) or "nothing"
        time = "no estimate" if self.seconds is None else f"about {as_duration(self.seconds)} of one worker"
        nothing = not (self.copied or any(self.media.values()) or self.changes["removed"])
        lines = {
            "output": f"{self.out}: "
            + ("nothing has changed" if nothing else f"version {self.version}" + ", under way" * self.under_way),
            "catalog": self.catalog,
            "model": self.model,
            "items": ", ".join(f"{count:,} {kind}" for kind, count in self.changes.items()),
            "kept": f"{self.kept:,} items in data files that stay; rows of {self.copied:,} without media",
            "media": media + (f"; {time}" if any(self.media.values()) else ""),
            "engines": "; ".join(f"{tower}: {name or 'will be measured'}" for tower, name in self.engines.items()),
            "refused": self.refused,
        }
        return "\n".join(f"{name:<9} {text}" for name, text in lines.items() if text)


def preview_run(catalog: str, model: str, out: str, settings: Settings, **options: Any) -> PlanPreview:
    """Describe what the same call of annotate would do. Writes nothing to the output; raises as annotate."""
    request = look_up(catalog, model, out, settings, validate(AnnotateOptions, options, "annotate"))
    return _of_new(request, settings) if request.settled is None else _of_settled(request, request.settled, settings)


def _of_new(request: Request, settings: Settings) -> PlanPreview:
    options, cut = request.options, request.preprocessing
    with spooled(request.catalog, request.roots) as spool:
        engines = _known_engines(request, spool.catalog.by_modality, settings)
        shards = sum(1 for _ in shards_of(spool, engines, cut.hop_s, options.shard_items))
        workers, problem = _workers(options, settings, shards)
        return PlanPreview(
            **_names(request),
            state="new",
            refused=(),
            items=spool.catalog.by_modality,
            items_left=spool.catalog.items,
            skipped=spool.catalog.skipped,
            duplicates=spool.catalog.duplicates,
            roots=request.roots,
            shards=shards,
            shards_left=shards,
            engines=_shown(engines, towers_needed(spool.catalog.by_modality, cut)),
            workers=workers,
            problem=problem,
            seconds=_seconds(spool, engines, request, workers),
            outside=_outside(spool, request.roots),
            bytes=spool.bytes[0],
            sizes_unknown=spool.bytes[1],
        )


def _of_settled(request: Request, plan: Plan, settings: Settings) -> PlanPreview:
    """Reads only the run's directory, as a resume does."""
    run = status(request.storage.uri, settings)
    # The call makes version 0, so it does nothing once that is published.
    published = run.published or run.version > plan.version
    left, shards_left = (0, 0) if published else (run.items - run.totals.items, run.shards - run.shards_done)
    workers, problem = _workers(request.options, settings, shards_left)
    rate = run.items_per_worker_s
    return PlanPreview(
        **_names(request),
        state="published" if published else "resume",
        refused=tuple(request.differences()),
        items=plan.catalog.by_modality,
        items_left=left,
        skipped=plan.catalog.skipped,
        duplicates=plan.catalog.duplicates,
        roots=plan.roots,
        shards=len(plan.shards),
        shards_left=shards_left,
        engines=_shown(plan.engines, plan.engines),
        workers=workers,
        problem=problem,
        seconds=left / rate / workers if rate else None,
    )


def _names(request: Request) -> dict[str, Any]:
    return {"out": request.storage.uri, "catalog": request.catalog.uri, "model": named(request.model)}


def named(model: ModelInfo) -> str:
    """A model for a person: name, version and digest."""
    return f"{model.name} {model.version or ''} ({model.digest[:12]})".replace("  ", " ")


def _known_engines(request: Request, modalities: Iterable[str], settings: Settings) -> dict[str, EngineInfo]:
    """The engines that are known without measuring: the wanted one, or the fastest of earlier runs."""
    wanted, info = request.options.engine, read_bundle_info(request.resolved.bundle_dir)
    found = {}
    for tower in towers_needed(modalities, request.preprocessing):
        cache = cache_of(settings.home / "cache" / "engines", info, tower)
        known = cache.read()
        speeds = {name: figures.items_per_s for name, figures in known.engines.items()} if known else {}
        name = wanted if wanted != "auto" else (fastest(known.engines) if known else "")
        if name:
            found[tower] = EngineInfo.model_validate({"name": name, "items_per_s": speeds})
    return found


def _shown(engines: Mapping[str, EngineInfo], towers: Iterable[str]) -> dict[str, tuple[str, float | None]]:
    known = {tower: (engine.name, engine.items_per_s.get(engine.name)) for tower, engine in engines.items()}
    return {tower: known.get(tower, ("", None)) for tower in towers}


def _seconds(spool: Spool, engines: Mapping[str, EngineInfo], request: Request, workers: int) -> float | None:
    """Estimated seconds of the work, shared by the workers."""
    needed = towers_needed(spool.catalog.by_modality, request.preprocessing)
    if any(speed is None for _, speed in _shown(engines, needed).values()):
        return None
    unit_s = seconds_per_unit(engines, request.preprocessing.hop_s)
    return sum(unit_s.get(group.modality, 0.0) * spool.units[group] for group in spool.groups) / workers


def _workers(options: AnnotateOptions, settings: Settings, shards: int) -> tuple[int, str | None]:
    """Number of workers that fit the cluster, and why it does not answer."""
    cluster, problem = settings.cluster, None
    there = cluster.num_cpus or own_cpus()
    if (cluster.address or os.environ.get("RAY_ADDRESS") or "local") != "local":
        try:
            with ray_session(cluster) as session:
                there = max(int(session.cpus), cluster.max_cpus or 0)
        except UsageError as error:
            problem = str(error)
    return max(1, min(options.workers or there, shards)), problem


def _outside(spool: Spool, roots: tuple[str, ...]) -> int:
    """Number of items outside the roots, estimated from at most _ROOTS_CHECKED evenly spaced items."""
    allowed = AllowedRoots(roots)
    step = -(-spool.catalog.items // _ROOTS_CHECKED)
    return step * sum(
        not allowed.allow(uri)
        for group in spool.groups
        for chunk in spool.chunks(group)
        for uri in chunk["uri"].filter(chunk["caption"].is_null()).drop_null().to_pylist()[::step]
    )


def _engine(name: str, items_per_s: float | None) -> str:
    speed = f" {items_per_s:,.0f}/s a worker" if items_per_s else ""
    return f"{name}{speed}" if name else "will be measured"


def _some(parts: Iterable[str]) -> str:
    parts = list(parts)
    more = f", {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more

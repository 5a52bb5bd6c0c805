"""`annotate --plan`: what a call would do, with what, and for about how long. Writes nothing to the output."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmva.bundle import BundleInfo, read_bundle_info
from mmva.errors import UsageError
from mmva.inference.calibration import fastest
from mmva.inference.config import EngineInfo
from mmva.inference.engines import cache_of
from mmva.modalities import towers_of
from mmva_platform.annotation.catalog import Catalog
from mmva_platform.annotation.commit import committed_shards
from mmva_platform.annotation.estimates import ItemTime, ItemTimer, picked
from mmva_platform.annotation.plan import BaseInfo, ItemReader, Plan
from mmva_platform.annotation.preview_text import preview_text
from mmva_platform.annotation.publish import MANIFEST_FILE
from mmva_platform.annotation.roots import AllowedRoots, place_of
from mmva_platform.annotation.schema import ITEM_SCHEMA
from mmva_platform.annotation.shards import as_counts
from mmva_platform.cluster import CPUS_PER_ACTOR, FREE_CPUS, own_cpus, ray_session
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, StorageError

START_S: Final = 13.0  # Ray and the workers' torch, seen on two idle cores; a busy machine took three times as long
_REUSED_PER_S: Final = 10_000  # items of an earlier annotation, on one core (benchmarks/reannotation.py)
_SIZES_ASKED, _ROOTS_CHECKED = 50, 20_000


@dataclass(frozen=True)
class Bytes:
    """What is to be fetched: all of it, how many sizes nobody knew, and of how many of those it was asked."""

    total: int
    unknown: int
    asked: int


@dataclass(frozen=True)
class EngineView:
    """A tower's engine, "" if it is not chosen yet; its speed if known; whether the run's plan has settled it."""

    name: str
    items_per_s: float | None
    settled: bool


@dataclass(frozen=True)
class Needs:
    """What the cluster must have and has; both `_there` are None where it does not answer, `problem` says why."""

    workers: int
    cpus: float
    cpus_there: float | None
    where: str
    parallel: float
    gpus: float = 0.0
    gpus_there: float | None = None
    problem: str | None = None

    @property
    def enough(self) -> bool:
        """Whether the workers fit."""
        return self.cpus_there is not None and self.cpus <= self.cpus_there and self.gpus <= (self.gpus_there or 0.0)


@dataclass(frozen=True)
class PlanPreview:
    """What a call of annotate would do.

    Attributes:
        out: The output.
        state: "new", "resume" or "published".
        refused: Why the call would be refused: what differs from the run that is there.
        catalog: Its URI.
        items: Of the catalog, by modality; so are items_left, not counting what comes from a base.
        skipped, duplicates: See Catalog.
        roots: Where media may be read from.
        outside: Items outside them; an estimate from `roots_checked` items if the catalog has more.
        base: The earlier annotation, and base_left: the items that are still to be taken from it.
        shards, shards_left: Of the run, and those that are not committed.
        bytes: To fetch.
        engines: By tower.
        needs: Of the cluster.
        times: What sampled items took, by modality.
        seconds: Estimated for each modality with these workers; START_S comes on top. No modality without a sample.
    """

    out: str
    state: str
    refused: tuple[str, ...]
    catalog: str
    model: str
    items: dict[str, int]
    items_left: dict[str, int]
    skipped: dict[str, int]
    duplicates: int
    roots: tuple[str, ...]
    outside: int
    roots_checked: int
    base: BaseInfo | None
    base_left: int
    shards: int
    shards_left: int
    bytes: Bytes
    engines: dict[str, EngineView]
    needs: Needs
    times: dict[str, ItemTime]
    seconds: dict[str, float]
    start_s: float = START_S

    def to_json(self) -> dict[str, Any]:
        """Plain values for --json."""
        plain = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        for name in ("bytes", "needs"):
            plain[name] = dataclasses.asdict(plain[name])
        plain["needs"]["enough"] = self.needs.enough
        plain["base"] = None if self.base is None else self.base.model_dump(mode="json")
        plain["engines"] = {tower: dataclasses.asdict(engine) for tower, engine in self.engines.items()}
        plain["times"] = {
            modality: {**dataclasses.asdict(took), "seconds": took.seconds} for modality, took in self.times.items()
        }
        return plain

    def to_text(self) -> str:
        """One glance for a person."""
        return preview_text(self)


def preview(
    catalog: Catalog,
    resolved_bundle_dir: Path,
    storage: Storage,
    settings: Settings,
    *,
    plan: Plan | None,
    new_plan: Plan,
    workers: int | None,
    base_files: pa.Array | None = None,
) -> PlanPreview:
    """What a call would do; reads listings, plans, sizes and a few of the media, writes nothing to the output.

    Args:
        catalog: What would be annotated.
        resolved_bundle_dir: With what.
        storage: The output.
        settings: Storage, cluster, home (for the cache of calibrations).
        plan: The settled plan if the output has one.
        new_plan: What make_plan gives; engines may be empty, they are then those measured before.
        workers: As asked for.
        base_files: As given to make_plan; used if there is no settled plan yet.

    Raises:
        UsageError, CheckFailed, OperationFailed: As the run itself would: model, storage.
    """
    info = read_bundle_info(resolved_bundle_dir)
    used = plan or new_plan
    published = plan is not None and storage.exists(MANIFEST_FILE)
    committed = set(used.shards) if published else (committed_shards(storage) & set(used.shards) if plan else set())
    todo = [shard for shard in used.shards if shard not in committed]
    left = _items_left(catalog, storage, plan, todo, base_files)
    anew = left.filter(left["base_file"].is_null())
    engines = _engines(info, settings, as_counts(anew), plan, new_plan)
    needs = _needs(settings, workers, len(todo), on_gpus=used.on_gpus)
    speeds = {tower: engine.items_per_s for tower, engine in engines.items() if engine.items_per_s}
    times = ItemTimer(resolved_bundle_dir, used, storage, settings).times(anew, speeds) if anew.num_rows else {}
    outside, checked = _outside(catalog.items, used.roots)
    return PlanPreview(
        out=storage.uri,
        state="published" if published else ("resume" if plan else "new"),
        refused=_differences(plan, new_plan),
        catalog=catalog.uri,
        model=f"{used.model.name}{f' {used.model.version}' if used.model.version else ''} ({used.model.digest[:12]})",
        items=as_counts(catalog.items),
        items_left=as_counts(anew),
        skipped=catalog.skipped,
        duplicates=catalog.duplicates,
        roots=used.roots,
        outside=outside,
        roots_checked=checked,
        base=used.base,
        base_left=left.num_rows - anew.num_rows,
        shards=len(used.shards),
        shards_left=len(todo),
        bytes=_bytes(anew, used.roots, settings),
        engines=engines,
        needs=needs,
        times=times,
        seconds=_seconds(as_counts(anew), left.num_rows - anew.num_rows, times, needs.parallel),
    )


def _items_left(
    catalog: Catalog, storage: Storage, plan: Plan | None, todo: list[str], base_files: pa.Array | None
) -> pa.Table:
    """Items of the shards that are not committed (ITEM_SCHEMA)."""
    if plan is not None:
        read = ItemReader(storage, plan)
        return pa.concat_tables([ITEM_SCHEMA.empty_table(), *map(read, todo)])
    files = pa.nulls(catalog.items.num_rows, pa.string()) if base_files is None else base_files
    return catalog.items.append_column(ITEM_SCHEMA.field("base_file"), files)


def _differences(plan: Plan | None, new_plan: Plan) -> tuple[str, ...]:
    """Why a run would be refused; engines that are not chosen yet are no difference."""
    if plan is None:
        return ()
    return tuple(
        plan.differences(new_plan if new_plan.engines else new_plan.model_copy(update={"engines": plan.engines}))
    )


def _engines(
    info: BundleInfo, settings: Settings, counts: Mapping[str, int], plan: Plan | None, new_plan: Plan
) -> dict[str, EngineView]:
    """The engine of each tower that is needed: the settled one, else the wanted one, else the fastest of before."""
    found = {}
    needed = dict.fromkeys(tower for modality in counts for tower in towers_of(modality))
    for tower in (name for name in needed if name in info.dims):
        known = cache_of(settings.home / "cache" / "engines", info, tower).read()
        measured = {name: figures.items_per_s for name, figures in known.engines.items()} if known else {}
        chosen = (plan or new_plan).engines.get(tower) or (EngineInfo(name="torch") if plan else None)
        name = chosen.name if chosen else (fastest(known.engines) if known else "")
        speeds = {**measured, **(chosen.items_per_s if chosen else {})}
        found[tower] = EngineView(name, speeds.get(name), settled=plan is not None and chosen is not None)
    return found


def _needs(settings: Settings, workers: int | None, shards: int, *, on_gpus: bool) -> Needs:
    """As pool.run_shards and cluster.default_workers reckon it; Ray is asked only if it runs elsewhere."""
    cluster, own = settings.cluster, own_cpus()
    share = 1 / settings.annotation.workers_per_gpu if on_gpus else 0.0
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    where, problem = "this machine", None
    there: float | None = cluster.num_cpus or max(2, own)
    assert there is not None
    gpus_there: float | None = _own_gpus() if on_gpus else 0.0
    most = int(min(own, there, (there - FREE_CPUS) / CPUS_PER_ACTOR))
    if address != "local":
        where = f"the cluster at {address}"
        try:
            with ray_session(cluster) as session:
                there, most = max(session.cpus, float(cluster.max_cpus or 0)), session.workers
                own, gpus_there = int(there), session.gpus
        except UsageError as error:
            there, gpus_there, problem = None, None, str(error)
    if share and gpus_there:
        most = min(most, int(gpus_there / share))
    count = max(1, min(workers or most, shards))
    cpus, parallel = count * CPUS_PER_ACTOR + FREE_CPUS, float(min(count, max(1, own)))
    return Needs(count, cpus, there, where, parallel, count * share, gpus_there, problem)


def _own_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _outside(items: pa.Table, roots: tuple[str, ...]) -> tuple[int, int]:
    """How many items lie outside the roots, and how many were looked at."""
    uris = items["uri"].filter(pc.and_(items["uri"].is_valid(), items["caption"].is_null()))
    chosen = np.sort(np.random.default_rng(0).permutation(len(uris))[:_ROOTS_CHECKED])
    allowed = AllowedRoots(roots)
    bad = sum(not allowed.allow(uri) for uri in uris.take(pa.array(chosen, pa.int64())).to_pylist())
    return round(bad * len(uris) / max(1, len(chosen))), len(chosen)


def _bytes(items: pa.Table, roots: tuple[str, ...], settings: Settings) -> Bytes:
    """Sum of the sizes; those that are not known are reckoned from a few that are asked for."""
    from mmva_platform.storage import open_storage

    media = items.filter(pc.and_(items["uri"].is_valid(), items["caption"].is_null()))
    nameless = media.filter(media["bytes"].is_null())
    known = int(pc.sum(media["bytes"]).as_py() or 0)
    rows = list(picked(nameless, AllowedRoots(roots), _SIZES_ASKED))
    places = [place_of(row["uri"]) for row in rows]
    opened = {root: open_storage(root, settings.storage) for root, _ in places}

    def size(place: tuple[str, str]) -> int | None:
        try:
            return opened[place[0]].size(place[1])
        except (StorageError, UsageError):
            return None

    with ThreadPoolExecutor(8) as pool:
        sizes = [found for found in pool.map(size, places) if found is not None]
    mean = sum(sizes) / len(sizes) if sizes else 0.0
    return Bytes(total=known + round(mean * nameless.num_rows), unknown=nameless.num_rows, asked=len(sizes))


def _seconds(
    counts: Mapping[str, int], reused: int, times: Mapping[str, ItemTime], parallel: float
) -> dict[str, float]:
    found = {name: counts[name] * took.seconds / parallel for name, took in times.items() if took.seconds is not None}
    return {**found, "base": reused / _REUSED_PER_S / parallel} if reused else found

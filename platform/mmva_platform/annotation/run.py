"""`annotate`: catalog -> plan -> execute -> commit -> publish. Running the same call again goes on where it stopped."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmva.errors import UsageError
from mmva.media.windows import HOP_S, WINDOW_S
from mmva_platform.annotation.catalog import Catalog, read_catalog
from mmva_platform.annotation.commit import CommitRecord, committed_shards, read_commit
from mmva_platform.annotation.plan import ModelInfo, Plan, Preprocessing, make_plan, settle_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, Manifest, publish, read_manifest
from mmva_platform.settings import ClusterSettings, Settings
from mmva_platform.storage import Storage, open_storage

logger = logging.getLogger(__name__)


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
            f"{self.shards} shards{resumed}, {self.seconds:.1f} s",
            self.out,
        ]
        if self.duplicates:
            lines.insert(-1, f"{self.duplicates} rows left out: their id stands on an earlier row")
        if self.skipped:
            lines.insert(-1, "no media, skipped: " + ", ".join(f"{n} {kind}" for kind, n in self.skipped.items()))
        return "\n".join(lines)


def annotate(
    catalog: str,
    model: str,
    out: str,
    settings: Settings,
    *,
    shard_items: int = 64,
    workers: int | None = None,
    batch_size: int = 16,
    window_s: float = WINDOW_S,
    hop_s: float = HOP_S,
) -> AnnotationSummary:
    """Give every item of a catalog a VA point and an embedding, or a quarantine row that says why not.

    Args:
        catalog: A folder, an S3 prefix or a table; see read_catalog.
        model: A bundle's folder, runs:/... or models:/mmva@champion.
        out: URI of the annotation run. A run that is there already is continued if it is the same, else refused.
        settings: Storage, cluster, registry.
        shard_items: Most images a shard, or as much other work; the unit of commit and retry.
        workers: Actors; one a CPU by default.
        batch_size: Images, windows or captions embedded at once.
        window_s: Length of a window of audio.
        hop_s: Distance of the starts of neighbouring windows.

    Raises:
        UsageError: For a catalog or model that cannot be read.
        CheckFailed: If `out` holds annotations of another model, preprocessing or catalog.
        StorageUnavailable, StalledError: When the run cannot go on; what is committed stays.
    """
    from mmva_platform.tracking.registry import resolve_model

    begun = time.monotonic()
    found = read_catalog(catalog, settings.storage)
    resolved = resolve_model(model, settings)
    identity = ModelInfo(name=resolved.name, version=_version(resolved.version), digest=resolved.digest)
    storage = open_storage(out, settings.storage)
    _tell(found)
    preprocessing = _preprocessing(resolved.bundle_dir, window_s, hop_s)
    plan = settle_plan(storage, *make_plan(found, identity, preprocessing, shard_items))
    manifest, resumed = carry_out(storage, plan, resolved.bundle_dir, settings, workers=workers, batch_size=batch_size)
    return _summary(storage, plan, manifest, resumed, time.monotonic() - begun)


def carry_out(
    storage: Storage,
    plan: Plan,
    bundle_dir: Path,
    settings: Settings,
    *,
    workers: int | None = None,
    batch_size: int = 16,
) -> tuple[Manifest, int]:
    """Run what of a settled plan is not committed, and publish it; the manifest, and how many shards were there.

    Raises:
        StorageUnavailable, StalledError: When the run cannot go on; what is committed stays.
    """
    if storage.exists(MANIFEST_FILE):
        return read_manifest(storage), len(plan.shards)
    before = committed_shards(storage) & set(plan.shards)
    commits = [read_commit(storage, shard) for shard in sorted(before)]
    todo = [shard for shard in plan.shards if shard not in before]
    if todo:
        arguments = {"plan": plan, "out": storage.uri, "settings": settings, "batch_size": batch_size}
        left = plan.catalog.items - sum(commit.items for commit in commits)
        commits += _execute(todo, left, bundle_dir, arguments, settings.cluster, workers)
    return publish(storage, plan, commits), len(before)


def _execute(
    shards: list[str],
    items: int,
    bundle_dir: Path,
    arguments: dict[str, Any],
    cluster: ClusterSettings,
    workers: int | None,
) -> list[CommitRecord]:
    """Run shards on the cluster; their records."""
    from mmva_platform.annotation.worker import ShardWorker, pack_bundle
    from mmva_platform.cluster import ray_session
    from mmva_platform.pool import run_shards
    from mmva_platform.progress import progress

    records: list[CommitRecord] = []
    with ray_session(cluster), progress("annotate", items) as advance:

        def on_result(record: CommitRecord) -> None:
            records.append(record)
            advance(record.items)

        run_shards(
            [{"shard": shard} for shard in shards],
            ShardWorker,
            stage="annotate",
            on_result=on_result,
            constructor_kwargs={"bundle": pack_bundle(bundle_dir), **arguments},
            workers=workers,
            stall_timeout_s=cluster.stall_timeout_s,
        )
    return records


def _preprocessing(bundle_dir: Path, window_s: float, hop_s: float) -> Preprocessing:
    """What the bundle records of its backbones, and how media are cut for them."""
    from mmva.bundle import read_bundle_info
    from mmva.media.images import SHORT_SIDE

    if not 0 < hop_s <= window_s:
        raise UsageError(f"hop_s must be above 0 and at most window_s, got {hop_s:g} and {window_s:g}")
    backbones = read_bundle_info(bundle_dir).backbones
    return Preprocessing(
        fingerprints={modality: record["fingerprint"] for modality, record in backbones.items()},
        window_s=window_s,
        hop_s=hop_s,
        short_side=SHORT_SIDE,
    )


def _version(version: object) -> str | None:
    return None if version is None else str(version)


def _tell(catalog: Catalog) -> None:
    if catalog.skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in catalog.skipped.items())
        logger.info("catalog %s: skipped what is no media: %s", catalog.uri, kinds)
    if catalog.duplicates:
        first = ", ".join(catalog.duplicate_ids)
        logger.warning(
            "catalog %s: %d rows repeat an earlier id and are left out: %s", catalog.uri, catalog.duplicates, first
        )


def _summary(storage: Storage, plan: Plan, manifest: Manifest, resumed: int, seconds: float) -> AnnotationSummary:
    totals = manifest.totals
    return AnnotationSummary(
        out=storage.uri,
        run_id=plan.run_id,
        items=totals.items,
        ok=totals.ok,
        quarantined=totals.quarantined,
        by_modality=totals.by_modality,
        causes=totals.causes,
        duplicates=plan.catalog.duplicates,
        skipped=plan.catalog.skipped,
        shards=len(plan.shards),
        resumed_shards=resumed,
        seconds=round(seconds, 2),
    )

"""`annotate` and `resume`: plan, execute, commit, publish. Both continue an interrupted run."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmva.engines.choice import pack_bundle
from mmva.errors import CheckFailed
from mmva.media.limits import DECODERS
from mmva_platform.annotation.options import AnnotateOptions, ErrorLimit, RetryOptions
from mmva_platform.annotation.plan.plan import Plan, plan_file, read_plan
from mmva_platform.annotation.run.prepare import Workers, look_up, make_plan, stored_bundle
from mmva_platform.annotation.run.worker import ShardDecoder, ShardWorker
from mmva_platform.annotation.table.commit import CommitRecord, committed_shards, read_commits
from mmva_platform.annotation.table.delta import is_published, latest_version
from mmva_platform.annotation.table.publish import AnnotationSummary, VersionRecord, publish, read_record, summarize
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.annotation.table.status import HeartbeatFile
from mmva_platform.bulk import Resources, Stage, run_pass
from mmva_platform.cluster import ray_session
from mmva_platform.draining import drain_on_sigterm
from mmva_platform.monitoring import RunMetrics, bound
from mmva_platform.progress import progress
from mmva_platform.settings import Settings, validate
from mmva_platform.storage import Storage, open_storage

__all__ = ["AnnotateOptions", "AnnotationSummary", "annotate", "resume"]
logger = logging.getLogger(__name__)


def annotate(catalog: str, model: str, out: str, settings: Settings, **options: Any) -> AnnotationSummary:
    """Give every item of a catalog a VA point and an embedding, or a quarantine row with the reason.

    If `out` holds a run of the same catalog, model and options, the run continues as planned and the catalog is not
    read again. `catalog` is a folder, an S3 prefix, a table or a folder of tables (see open_catalog), `model` a
    bundle's folder, runs:/... or models:/mmva@champion, `options` are fields of AnnotateOptions.

    Raises UsageError for a catalog or model that cannot be read or an unknown option; CheckFailed if `out` holds other
    annotations, its store cannot hold a run, or more items than max_errors are quarantined; StorageUnavailable and
    StalledError if the run cannot continue, StoppedError after SIGTERM. Committed shards stay.
    """
    begun = time.monotonic()
    chosen = validate(AnnotateOptions, options, "annotate")
    request = look_up(catalog, model, out, settings, chosen)
    with Workers(settings.cluster) as workers:
        plan = request.continued() or make_plan(request, settings, workers)
        return finished(request.storage, plan, request.resolved.bundle_dir, settings, options=chosen, begun=begun)


def resume(out: str, settings: Settings, **options: Any) -> AnnotationSummary:
    """Finish an unpublished version from its directory alone, without reading the catalog or the registry.

    Does nothing if every version is published. `options` are workers, batch_size and max_errors of RetryOptions. Raises
    UsageError if there is no run or for an unknown option, CheckFailed if the stored model is damaged or more items
    than max_errors are quarantined; StorageUnavailable, StalledError and StoppedError as annotate.
    """
    begun = time.monotonic()
    chosen = validate(RetryOptions, options, "resume")
    storage = open_storage(out, settings.storage)
    published = latest_version(storage)
    coming = 0 if published is None else published + 1
    if published is not None and not storage.exists(plan_file(coming)):
        record = open_annotation(storage).record  # which refuses a version that another program wrote
        logger.info("%s: version %d is published, nothing is under way", storage.uri, published)
        plan = read_plan(storage, published)
        return summarize(storage.uri, record, plan, resumed=len(plan.shards), seconds=time.monotonic() - begun)
    plan = read_plan(storage, coming)
    with stored_bundle(storage, plan.model) as bundle_dir:
        return finished(storage, plan, bundle_dir, settings, options=chosen, begun=begun)


def finished(
    storage: Storage, plan: Plan, bundle_dir: Path, settings: Settings, *, options: RetryOptions, begun: float
) -> AnnotationSummary:
    """Carry out a plan; returns the summary."""
    if plan.preprocessing.decoders != DECODERS and plan.kind not in {"retry", "restore"}:
        raise CheckFailed(
            f"{storage.uri}: version {plan.version} was begun by a release that decodes media differently (decoders "
            f"{plan.preprocessing.decoders}, here {DECODERS}); finish it with that release, or choose another output"
        )
    record, resumed = carry_out(
        storage,
        plan,
        bundle_dir,
        settings,
        workers=options.workers,
        batch_size=options.batch_size,
        max_errors=options.max_errors or ("100%" if plan.kind == "retry" else None),
    )
    return summarize(storage.uri, record, plan, resumed=resumed, seconds=time.monotonic() - begun)


def carry_out(
    storage: Storage,
    plan: Plan,
    bundle_dir: Path,
    settings: Settings,
    *,
    workers: int | None = None,
    batch_size: int = 16,
    max_errors: str | None = None,
) -> tuple[VersionRecord, int]:
    """Run the uncommitted shards of a plan and publish the version.

    Returns its record and the number of shards that were committed before. `workers` is the largest number of actors.
    Raises CheckFailed if more items than `max_errors` are quarantined (see ErrorLimit), ShardsFailedError,
    StorageUnavailable or StalledError if the run cannot continue, StoppedError after SIGTERM. Committed shards stay.
    """
    if is_published(storage, plan.version):
        return read_record(storage, plan.version), len(plan.shards)
    before = committed_shards(storage, plan.version) & set(plan.shards)
    commits = read_commits(storage, plan.version, sorted(before))
    watch = _Errors(storage, plan, max_errors)
    for commit in commits:
        watch(commit)
    todo = [shard for shard in plan.shards if shard not in before]
    if todo:
        run = {"bundle": pack_bundle(bundle_dir), "plan": plan, "out": storage.uri, "settings": settings}
        left = sum(plan.rows) - sum(commit.items for commit in commits)
        with bound(run=plan.run_id):
            commits += _execute(storage, todo, left, run, batch_size=batch_size, watch=watch, workers=workers)
    return publish(storage, plan, commits), len(before)


def _execute(
    storage: Storage,
    shards: Sequence[str],
    items: int,
    run: dict[str, Any],
    *,
    batch_size: int,
    watch: _Errors,
    workers: int | None,
) -> list[CommitRecord]:
    plan: Plan = run["plan"]
    settings: Settings = run["settings"]
    resources, before, limit_s = Resources(max_workers=workers), None, settings.annotation.item_timeout_s
    if plan.on_gpus:
        resources = Resources(gpus=1 / settings.annotation.workers_per_gpu, max_workers=workers)
        before = Stage(ShardDecoder, run)
        limit_s = max(limit_s, settings.cluster.stall_timeout_s)  # some threads decode while another loads the model
    model = {"name": plan.model.name, "version": plan.model.version or "", "digest": plan.model.digest}
    records: list[CommitRecord] = []
    with ray_session(settings.cluster), drain_on_sigterm() as stopping, progress("annotate", items) as advance:
        metrics = RunMetrics(plan.run_id, model, len(plan.shards), len(plan.shards) - len(shards))

        def on_result(record: CommitRecord) -> None:
            records.append(record)
            metrics.committed(record)
            advance(record.items)
            watch(record)

        run_pass(
            [{"shard": shard} for shard in shards],
            ShardWorker,
            stage="annotate",
            settings=settings,
            on_result=on_result,
            kwargs=run | {"batch_size": batch_size},
            resources=resources,
            before=before,
            step_limit_s=limit_s,
            stopping=stopping,
            on_heartbeat=HeartbeatFile(storage, plan.version),
        )
    return records


class _Errors:
    """Counts quarantined items, and ends a run that has too many."""

    def __init__(self, storage: Storage, plan: Plan, max_errors: str | None) -> None:
        self._uri = storage.uri
        self._limit = ErrorLimit(max_errors, sum(plan.rows))
        self._done = self._quarantined = 0
        self._causes: Counter[str] = Counter()

    def __call__(self, record: CommitRecord) -> None:
        carried = record.work.get("carried", 0)  # copied from the version before: not a result of this run
        self._done += record.items - carried
        self._quarantined += record.work.get("quarantined", 0)
        if not carried:
            self._causes.update(record.causes)
        if self._limit.exceeded(self._done, self._quarantined):
            (cause, count), *_ = self._causes.most_common(1) or [("of no cause", 0)]
            raise CheckFailed(
                f"{self._uri}: {self._quarantined} of {self._done} items are quarantined ({count} {cause}), over the "
                f"limit of {self._limit.text}; committed shards stay, a higher --max-errors continues from there"
            )

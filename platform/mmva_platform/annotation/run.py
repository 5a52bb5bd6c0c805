"""`annotate` and `resume`: plan, execute, commit, publish. A call that was cut short is continued by either."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from mmva_platform.annotation.execute import carry_out
from mmva_platform.annotation.on_workers import Workers
from mmva_platform.annotation.options import AnnotateOptions
from mmva_platform.annotation.plan import Plan, read_plan
from mmva_platform.annotation.prepare import look_up, make_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, read_manifest
from mmva_platform.annotation.stored_model import stored_bundle
from mmva_platform.annotation.summary import AnnotationSummary, summarize
from mmva_platform.settings import Settings, validate
from mmva_platform.storage import Storage, open_storage

__all__ = ["AnnotateOptions", "AnnotationSummary", "annotate", "resume"]

logger = logging.getLogger(__name__)


def annotate(catalog: str, model: str, out: str, settings: Settings, **options: Any) -> AnnotationSummary:
    """Give every item of a catalog a VA point and an embedding, or a quarantine row that says why not.

    If `out` holds a run of the same catalog, model and options, it is continued as it was planned, and the catalog is
    not read again.

    Args:
        catalog: A folder, an S3 prefix, a table or a folder of table files; see open_catalog.
        model: A bundle's folder, runs:/... or models:/mmva@champion.
        out: URI of the annotation run.
        settings: Storage, cluster, registry.
        options: Fields of AnnotateOptions.

    Raises:
        UsageError: For a catalog or model that cannot be read, or an unknown option.
        CheckFailed: If `out` holds annotations of another catalog, model or preprocessing, if its store cannot hold a
            run, or if more items than max_errors are quarantined.
        StorageUnavailable, StalledError: When the run cannot continue; what is committed stays.
        StoppedError: After SIGTERM, with the shards that were under way committed.
    """
    begun = time.monotonic()
    chosen = validate(AnnotateOptions, options, "annotate")
    request = look_up(catalog, model, out, settings, chosen)
    with Workers(settings.cluster) as workers:
        plan = request.continued() or make_plan(request, settings, workers)
        return _finished(request.storage, plan, request.resolved.bundle_dir, settings, options=chosen, begun=begun)


def resume(out: str, settings: Settings, **options: Any) -> AnnotationSummary:
    """Finish a run from its directory alone: neither the catalog nor the registry is asked.

    Args:
        out: URI of the annotation run. One that is published is left as it is.
        settings: Storage, cluster.
        options: workers, batch_size and max_errors of AnnotateOptions.

    Raises:
        UsageError: If there is no run, or for an unknown option.
        CheckFailed: If the model's files in the run are damaged, or more items than max_errors are quarantined.
        StorageUnavailable, StalledError, StoppedError: As annotate.
    """
    begun = time.monotonic()
    chosen = validate(AnnotateOptions, options, "resume")
    storage = open_storage(out, settings.storage)
    plan = read_plan(storage)
    if storage.exists(MANIFEST_FILE):
        logger.info("%s: already published, nothing left to do", storage.uri)
        totals, shards = read_manifest(storage).totals, len(plan.shards)
        return summarize(storage.uri, plan, totals, resumed=shards, seconds=time.monotonic() - begun)
    with stored_bundle(storage, plan.model) as bundle_dir:
        return _finished(storage, plan, bundle_dir, settings, options=chosen, begun=begun)


def _finished(
    storage: Storage, plan: Plan, bundle_dir: Path, settings: Settings, *, options: AnnotateOptions, begun: float
) -> AnnotationSummary:
    manifest, resumed = carry_out(
        storage,
        plan,
        bundle_dir,
        settings,
        workers=options.workers,
        batch_size=options.batch_size,
        max_errors=options.max_errors,
    )
    return summarize(storage.uri, plan, manifest.totals, resumed=resumed, seconds=time.monotonic() - begun)

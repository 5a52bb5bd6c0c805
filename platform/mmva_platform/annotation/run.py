"""`annotate` and `resume`: plan, execute, commit, publish. Either continues an interrupted call."""

import logging
import time
from pathlib import Path
from typing import Any

from mmva.errors import CheckFailed
from mmva.media.limits import DECODERS
from mmva_platform.annotation.execute import carry_out
from mmva_platform.annotation.on_workers import Workers
from mmva_platform.annotation.options import AnnotateOptions, RetryOptions
from mmva_platform.annotation.plan import Plan, plan_file, read_plan
from mmva_platform.annotation.prepare import look_up, make_plan
from mmva_platform.annotation.publish import read_record
from mmva_platform.annotation.stored_model import stored_bundle
from mmva_platform.annotation.summary import AnnotationSummary, summarize
from mmva_platform.annotation.table import latest_version
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
    """Finish an unpublished version from its directory alone: reads neither the catalog nor the registry.

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
        logger.info("%s: version %d is published, nothing is under way", storage.uri, published)
        record = read_record(storage, published)
        plan = read_plan(storage, published)
        return summarize(storage.uri, record, plan, resumed=len(plan.shards), seconds=time.monotonic() - begun)
    plan = read_plan(storage, coming)
    with stored_bundle(storage, plan.model) as bundle_dir:
        return finished(storage, plan, bundle_dir, settings, options=chosen, begun=begun)


def finished(
    storage: Storage, plan: Plan, bundle_dir: Path, settings: Settings, *, options: RetryOptions, begun: float
) -> AnnotationSummary:
    """Carry out a plan; returns the summary."""
    if plan.preprocessing.decoders != DECODERS and plan.kind != "retry":
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

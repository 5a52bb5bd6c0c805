"""`annotate`: catalog -> plan -> execute -> commit -> publish. Running the same call again goes on where it stopped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mmva_platform.annotation.execute import carry_out
from mmva_platform.annotation.options import AnnotateOptions
from mmva_platform.annotation.plan import settle_plan
from mmva_platform.annotation.prepare import prepare
from mmva_platform.annotation.summary import AnnotationSummary
from mmva_platform.settings import Settings, validate

if TYPE_CHECKING:
    from mmva_platform.annotation.preview import PlanPreview

__all__ = ["AnnotateOptions", "AnnotationSummary", "annotate", "preview_run"]


def annotate(catalog: str, model: str, out: str, settings: Settings, **options: Any) -> AnnotationSummary:
    """Give every item of a catalog a VA point and an embedding, or a quarantine row that says why not.

    Args:
        catalog: A folder, an S3 prefix or a table; see read_catalog.
        model: A bundle's folder, runs:/... or models:/mmva@champion.
        out: URI of the annotation run. A run that is there already is continued if it is the same, else refused.
        settings: Storage, cluster, registry.
        options: Fields of AnnotateOptions.

    Raises:
        UsageError: For a catalog or model that cannot be read, or an option that is none.
        CheckFailed: If `out` holds annotations of another model, preprocessing or catalog, if its store cannot hold a
            run, or if more items than max_errors are quarantined.
        StorageUnavailable, StalledError: When the run cannot go on; what is committed stays.
        StoppedError: After SIGTERM, with the shards that were under way committed.
    """
    begun = time.monotonic()
    chosen = validate(AnnotateOptions, options, "annotate")
    prepared = prepare(catalog, model, out, settings, chosen)
    plan = settle_plan(prepared.storage, prepared.plan, prepared.contents)
    manifest, resumed = carry_out(
        prepared.storage,
        plan,
        prepared.bundle_dir,
        settings,
        workers=chosen.workers,
        batch_size=chosen.batch_size,
        max_errors=chosen.max_errors,
    )
    totals = manifest.totals
    return AnnotationSummary(
        out=prepared.storage.uri,
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
        seconds=round(time.monotonic() - begun, 2),
        work=totals.work,
    )


def preview_run(catalog: str, model: str, out: str, settings: Settings, **options: Any) -> PlanPreview:
    """What the same call of annotate would do; writes nothing to the output. Raises as annotate."""
    from mmva_platform.annotation.preview import preview

    chosen = validate(AnnotateOptions, options, "annotate")
    prepared = prepare(catalog, model, out, settings, chosen, calibrate=False)
    return preview(
        prepared.catalog,
        prepared.bundle_dir,
        prepared.storage,
        settings,
        plan=prepared.settled,
        new_plan=prepared.plan,
        workers=chosen.workers,
        base_files=prepared.base_files,
    )

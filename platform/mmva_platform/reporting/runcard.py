"""The facts of a run, shown on the page and written next to it as JSON."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.errors import CheckFailed
from mmva.evaluation.drift import drift_by_modality
from mmva.modalities import AXES, MEDIA_KINDS
from mmva_platform.annotation.plan.plan import Plan
from mmva_platform.annotation.table.publish import Totals, VersionRecord, changes_of
from mmva_platform.reporting.plane import va_of

HISTOGRAM_BINS: Final = 20
NO_REFERENCE: Final = "this bundle has no reference"
NO_BUNDLE: Final = "the model's bundle was not found, so there is no reference to compare with"


def run_facts(
    plan: Plan, record: VersionRecord, annotations: pa.Table, quarantine: pa.Table, provenance: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All counts of a version, as values for JSON.

    Reads modality, valence and arousal of `annotations` and error of `quarantine`. `provenance` is the bundle's, None
    if the bundle was not found. Raises CheckFailed if these do not add up to the version's items.
    """
    va = va_by_modality(annotations)
    causes = Counter(quarantine["error"].to_pylist())
    return {
        "counts": _counts(plan, record, {name: len(va_N2) for name, va_N2 in va.items()}, quarantine.num_rows),
        "quarantine": dict(causes.most_common()),
        "histograms": {name: histograms(va_N2) for name, va_N2 in va.items()},
        "drift": drift_facts(va, provenance),
        "throughput": throughput(record.totals),
        "engines": {name: engine.model_dump(mode="json") for name, engine in plan.engines.items()},
        "model": record.model.model_dump(mode="json"),
        "version": {"number": record.version, "kind": record.kind},
        "changes": changes_of(record.base) if record.base else None,
        "run": {"run_id": plan.run_id, "created_at": plan.created_at.isoformat(), "command": list(plan.command)},
        "catalog": plan.catalog.model_dump(mode="json"),
    }


def to_json(facts: Mapping[str, Any]) -> str:
    """Facts as JSON text. Raises ValueError for NaN."""
    return json.dumps(facts, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def va_by_modality(annotations: pa.Table) -> dict[str, NDArray[np.float64]]:
    """VA points [N, 2] of each modality in the table, in the order of the page."""
    va_N2, modality_N = va_of(annotations), np.asarray(annotations["modality"].to_pylist(), dtype=object)
    return {name: va_N2[modality_N == name] for name in MEDIA_KINDS if (modality_N == name).any()}


def histograms(va_N2: NDArray[np.float64]) -> dict[str, dict[str, list[float] | list[int]]]:
    """Counts in HISTOGRAM_BINS equal bins from 0 to 1 per axis, and the edges; values outside are in the end bins."""
    found: dict[str, dict[str, list[float] | list[int]]] = {}
    for index, axis in enumerate(AXES):
        counts, edges = np.histogram(np.clip(va_N2[:, index], 0, 1), bins=HISTOGRAM_BINS, range=(0, 1))
        found[axis] = {"edges": [round(float(edge), 6) for edge in edges], "counts": [int(count) for count in counts]}
    return found


def drift_facts(va: Mapping[str, NDArray[np.float64]], provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    """Drift by modality and axis, and a note on modalities without a reference."""
    if provenance is None or not provenance.get("reference"):
        return {"note": NO_BUNDLE if provenance is None else NO_REFERENCE, "by_modality": {}}
    found = drift_by_modality(va, provenance["reference"])
    missing = sorted(set(va) - set(found))
    return {
        "note": f"no reference for {', '.join(missing)}" if missing else "",
        "by_modality": {
            name: {axis: dataclasses.asdict(each) for axis, each in axes.items()} for name, axes in found.items()
        },
    }


def throughput(totals: Totals) -> dict[str, Any]:
    """Total worker seconds by stage, for the items of the version's own shards.

    Returns `stages`: {stage: {"seconds", "share" (of all stages, 0 to 1), "items_per_second" or None}},
    `worker_seconds`, `items`, and `items_per_worker_second` or None.
    """
    items, total = totals.items, sum(totals.seconds.values())
    stages = {
        stage: {
            "seconds": round(value, 4),
            "share": round(value / total, 4) if total else 0.0,
            "items_per_second": round(items / value, 3) if value else None,
        }
        for stage, value in totals.seconds.items()
    }
    return {
        "stages": stages,
        "worker_seconds": round(total, 4),
        "items": items,
        "items_per_worker_second": round(items / total, 3) if total else None,
    }


def _counts(plan: Plan, record: VersionRecord, by_modality: dict[str, int], quarantined: int) -> dict[str, Any]:
    """Catalog rows = duplicates + items; items = annotated + quarantined."""
    annotated = sum(by_modality.values())
    if annotated + quarantined != record.items:
        raise CheckFailed(
            f"{plan.run_id}: {annotated} annotated and {quarantined} quarantined are not {record.items} items; run "
            "`mmva annotations verify` on it"
        )
    return {
        "catalog_rows": record.items + plan.catalog.duplicates,
        "duplicates": plan.catalog.duplicates,
        "skipped_files": dict(plan.catalog.skipped),
        "items": record.items,
        "annotated": annotated,
        "quarantined": quarantined,
        "by_modality": by_modality,
        "work": {kind: count for kind, count in record.totals.work.items() if count},
    }

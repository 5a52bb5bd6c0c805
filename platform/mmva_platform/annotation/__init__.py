"""Catalog -> plan -> execute -> commit -> publish; verify, status.

    from mmva_platform.annotation import annotate, read_annotations
    annotate("photos/", "models:/mmva@champion", "annotations/photos", Settings())
    table = read_annotations("annotations/photos")

What stands in an output, in the order it is written: plan/catalog-*.parquet and plan.json (what will be done),
data/*.parquet and quarantine/*.parquet (a shard's rows), commits/*.json (that they count), MANIFEST.json (that all of
it is there). Everything but the rows is put once and never replaced.
"""

from __future__ import annotations

from mmva_platform.annotation.catalog import Catalog, read_catalog
from mmva_platform.annotation.publish import read_annotations, read_manifest, read_quarantine
from mmva_platform.annotation.run import AnnotationSummary, annotate
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.annotation.status import RunStatus, status
from mmva_platform.annotation.verify import VerifyReport, verify

__all__ = [
    "ANNOTATION_SCHEMA", "QUARANTINE_SCHEMA", "AnnotationSummary", "Catalog", "RunStatus", "VerifyReport", "annotate",
    "read_annotations", "read_catalog", "read_manifest", "read_quarantine", "status", "verify",
]  # fmt: skip

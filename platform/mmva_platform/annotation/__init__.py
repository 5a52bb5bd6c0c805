"""Catalog -> plan -> execute -> commit -> publish; verify, status.

    from mmva_platform.annotation import annotate, iter_annotations, read_annotations
    annotate("photos/", "models:/mmva@champion", "annotations/photos", Settings())
    table = read_annotations("annotations/photos")  # all in memory; iter_annotations: file by file

What an output holds, in the order it is written: model/*, plan/items-*.parquet and plan.json (what will be done),
attempts/<shard>/*.json (that a shard was begun), data/*.parquet, quarantine/*.parquet and windows/*.parquet (a shard's
rows), commits/*.json (that they count), MANIFEST.json (that all of it is there); retries/0001/ and so on hold the same
for another try at what is quarantined. Everything but the rows is put once and never replaced.
"""

from __future__ import annotations

from mmva_platform.annotation.base import Base, open_base
from mmva_platform.annotation.catalog import Catalog, open_catalog
from mmva_platform.annotation.publish import (
    generations,
    iter_annotations,
    iter_quarantine,
    read_annotations,
    read_manifest,
    read_quarantine,
)
from mmva_platform.annotation.retry import retry
from mmva_platform.annotation.run import AnnotationSummary, annotate, resume
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.annotation.status import RunStatus, status
from mmva_platform.annotation.verify import VerifyReport, verify

__all__ = [
    "ANNOTATION_SCHEMA", "QUARANTINE_SCHEMA", "AnnotationSummary", "Base", "Catalog", "RunStatus", "VerifyReport",
    "annotate", "generations", "iter_annotations", "iter_quarantine", "open_base", "open_catalog", "read_annotations",
    "read_manifest", "read_quarantine", "resume", "retry", "status", "verify",
]  # fmt: skip

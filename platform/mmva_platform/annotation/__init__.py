"""Catalog -> plan -> execute -> commit -> publish; verify, status.

    from mmva_platform.annotation import annotate, iter_annotations, read_annotations
    annotate("photos/", "models:/mmva@champion", "annotations/photos", Settings())
    table = read_annotations("annotations/photos")  # all in memory; iter_annotations: file by file

docs/annotation.md describes what an output holds, in the order in which it is written.
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
    to_ray,
)
from mmva_platform.annotation.retry import retry
from mmva_platform.annotation.run import AnnotationSummary, annotate, resume
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.annotation.status import RunStatus, status
from mmva_platform.annotation.verify import VerifyReport, verify

__all__ = [
    "ANNOTATION_SCHEMA", "QUARANTINE_SCHEMA", "AnnotationSummary", "Base", "Catalog", "RunStatus", "VerifyReport",
    "annotate", "generations", "iter_annotations", "iter_quarantine", "open_base", "open_catalog", "read_annotations",
    "read_manifest", "read_quarantine", "resume", "retry", "status", "to_ray", "verify",
]  # fmt: skip

"""Annotates catalogs: plan, execute, commit and publish a version; update, retry, read, verify, export, clean.

    from mmva_platform.annotation import annotate, open_annotation
    annotate("photos/", "models:/mmva@champion", "va/photos", Settings())
    for table in open_annotation("va/photos").tables(["id", "valence", "arousal"]): ...

docs/annotation.md describes the files and columns of an annotation.
"""

from mmva_platform.annotation.catalog.catalog import Catalog, open_catalog
from mmva_platform.annotation.run.runner import AnnotationSummary, annotate, resume
from mmva_platform.annotation.run.update import retry, update
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, TABLE_SCHEMA
from mmva_platform.annotation.table.clean import clean
from mmva_platform.annotation.table.export import export
from mmva_platform.annotation.table.reader import Annotation, open_annotation
from mmva_platform.annotation.table.status import History, RunStatus, history, status
from mmva_platform.annotation.table.verify import VerifyReport, verify

__all__ = [
    "ANNOTATION_SCHEMA", "QUARANTINE_SCHEMA", "TABLE_SCHEMA", "Annotation", "AnnotationSummary", "Catalog", "History",
    "RunStatus", "VerifyReport", "annotate", "clean", "export", "history", "open_annotation", "open_catalog", "resume",
    "retry", "status", "update", "verify",
]  # fmt: skip

"""Annotate a catalog: python jobs/annotate.py --config jobs/recipes/annotate.yaml --set out=s3://..."""

import sys
from typing import Any

from mmva_platform.annotation.run.runner import AnnotateOptions
from mmva_platform.annotation.run.runner import annotate as annotate_catalog
from mmva_platform.cli.job import run_job
from mmva_platform.settings import Settings


class AnnotateJob(AnnotateOptions):
    """Annotate every item of a catalog; running the same job again resumes it."""

    catalog: str
    model: str = "models:/mmva@champion"
    out: str


def annotate(job: AnnotateJob, settings: Settings) -> dict[str, Any]:
    """Returns the counts of annotated and quarantined items, which add up to the catalog."""
    options = job.model_dump(include=set(AnnotateOptions.model_fields)) | {"command": ("python", *sys.argv)}
    return annotate_catalog(job.catalog, job.model, job.out, settings, **options).to_json()


if __name__ == "__main__":
    run_job(AnnotateJob, annotate)

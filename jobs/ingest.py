"""Import labeled media into a dataset: python jobs/ingest.py --config jobs/recipes/ingest.yaml --set out=s3://..."""

from typing import Any

from mmva_platform.cli.job import run_job
from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
from mmva_platform.settings import Settings


class IngestJob(ImportConfig):
    """Import labeled media into a dataset."""

    out: str


def ingest(job: IngestJob, settings: Settings) -> dict[str, Any]:
    """Returns the import report."""
    config = ImportConfig.model_validate(job.model_dump(exclude={"out"}))
    return import_dataset(config, job.out, settings).to_json()


if __name__ == "__main__":
    run_job(IngestJob, ingest)

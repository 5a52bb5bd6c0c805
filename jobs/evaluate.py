"""Evaluate a model on a dataset: python jobs/evaluate.py --set model=models:/mmva@champion --set dataset=s3://..."""

from typing import Any

from pydantic import Field

from mmva_platform.cli.job import run_job
from mmva_platform.settings import Config, Settings
from mmva_platform.workflows import evaluate_model


class EvaluateJob(Config):
    """Evaluate a model on a dataset's split."""

    model: str
    dataset: str
    split: str = "test"
    clip_split: bool = True
    embeddings: str | None = None
    folds: int | None = Field(None, ge=2, description="retrain the recipe on this many folds by group")


def evaluate(job: EvaluateJob, settings: Settings) -> dict[str, Any]:
    """Returns metrics with intervals and floors, and the metrics of a split by clip."""
    evaluation = evaluate_model(
        job.model,
        job.dataset,
        settings,
        split=job.split,
        clip_split=job.clip_split,
        embeddings=job.embeddings,
        folds=job.folds,
    )
    return evaluation.to_json()


if __name__ == "__main__":
    run_job(EvaluateJob, evaluate)

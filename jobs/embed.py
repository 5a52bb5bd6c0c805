"""Embed a dataset once per backbone: python jobs/embed.py --config jobs/recipes/embed.yaml --set dataset=s3://..."""

from mmva_platform.cli.job import run_job
from mmva_platform.datasets.embedding import embed_dataset
from mmva_platform.settings import Config, Settings


class EmbedJob(Config):
    """Embed a dataset once per backbone."""

    dataset: str
    preset: str = "compact"
    out: str | None = None


def embed(job: EmbedJob, settings: Settings) -> dict[str, str]:
    """Embed as configured; where each modality's embeddings stand is the result."""
    return dict(embed_dataset(job.dataset, job.preset, job.out, settings))


if __name__ == "__main__":
    run_job(EmbedJob, embed)

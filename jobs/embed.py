"""Embed a dataset once per backbone: python jobs/embed.py --config jobs/recipes/embed.yaml --set dataset=s3://..."""

from pydantic import Field

from mmva_platform.cli.job import run_job
from mmva_platform.datasets.embedding.run import embed_dataset
from mmva_platform.datasets.embedding.worker import Engine
from mmva_platform.settings import Config, Settings
from mmva_platform.workflows import backbones_of


class EmbedJob(Config):
    """Embed a dataset once per backbone."""

    dataset: str
    preset: str = Field("compact", description="preset, or a model with its own backbones: models:/mmva@champion")
    out: str | None = None
    engine: Engine = "auto"
    batch_size: int = Field(16, ge=1)


def embed(job: EmbedJob, settings: Settings) -> dict[str, str]:
    """Returns the URI of each modality's embeddings."""
    chosen = backbones_of(job.preset, settings)
    sets = embed_dataset(job.dataset, chosen, job.out, settings, batch_size=job.batch_size, engine=job.engine)
    return {str(modality): uri for modality, uri in sets.items()}


if __name__ == "__main__":
    run_job(EmbedJob, embed)

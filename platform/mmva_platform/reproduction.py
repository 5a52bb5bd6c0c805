"""MMVA's experiment in one command: import, embed, train, and compare both splits with the published figures."""

from pathlib import Path

from pydantic import Field

from mmva_platform.datasets.importing.run import ImportConfig
from mmva_platform.settings import Config, Settings, load_config
from mmva_platform.training.evaluation.evaluate import Evaluation
from mmva_platform.training.recipe import Recipe


class Reproduction(Config):
    """Content of a file of jobs/recipes/reproduce."""

    data: ImportConfig = Field(description="the sources; their roots are relative to the given folder")
    recipe: Recipe = Field(description="its dataset is imported if it does not exist yet")


def load_reproduction(path: Path, folder: str, overrides: list[str]) -> Reproduction:
    """Read a file of jobs/recipes/reproduce for the media in a folder or under a URI. Raises as load_config."""
    job = load_config(Reproduction, path, overrides)
    below = [folder if source.root == "." else f"{folder.rstrip('/')}/{source.root}" for source in job.data.sources]
    sources = tuple(
        source.model_copy(update={"root": root}) for source, root in zip(job.data.sources, below, strict=True)
    )
    return job.model_copy(update={"data": job.data.model_copy(update={"sources": sources})})


def reproduce(job: Reproduction, settings: Settings) -> Evaluation:
    """Import and embed if the results do not exist yet, then train and register the model.

    Returns the figures of the test split; `clip_split` has those of the same recipe on a split by clip.
    """
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.importing.run import import_dataset
    from mmva_platform.datasets.schema import DATASET_FILE
    from mmva_platform.storage import open_storage
    from mmva_platform.workflows import evaluate_model, train_and_register

    dataset = job.recipe.dataset
    if not open_storage(dataset, settings.storage).exists(DATASET_FILE):
        import_dataset(job.data, dataset, settings)
    embed_dataset(dataset, job.recipe.preset, job.recipe.embeddings, settings)
    trained = train_and_register(job.recipe, settings)
    return evaluate_model(f"{trained.run_dir}/bundle", dataset, settings)

"""Train, log and register: python jobs/train.py --config jobs/recipes/compact.yaml --set dataset=s3://..."""

from typing import Any

from mmva_platform.cli.job import run_job
from mmva_platform.settings import Settings
from mmva_platform.training.recipe import Recipe
from mmva_platform.workflows import train_and_register


def train(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Returns the run, the registered version and the digests."""
    return train_and_register(recipe, settings).to_json()


if __name__ == "__main__":
    run_job(Recipe, train)

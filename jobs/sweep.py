"""Search a grid, then train and register the best: python jobs/sweep.py --config jobs/recipes/sweep.yaml"""

from typing import Any

from mmva_platform.cli.job import run_job
from mmva_platform.settings import Settings
from mmva_platform.training.sweep import SweepOptions
from mmva_platform.workflows import sweep_and_register


def sweep(options: SweepOptions, settings: Settings) -> dict[str, Any]:
    """Returns the trials, and the run and version of the best one."""
    found, outcome = sweep_and_register(options, settings)
    return {**outcome.to_json(), **found.to_json()}


if __name__ == "__main__":
    run_job(SweepOptions, sweep)

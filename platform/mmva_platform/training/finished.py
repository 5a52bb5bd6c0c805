"""A run that came to its end, read back from its directory: what is left to do for it needs no training."""

from __future__ import annotations

from mmva_platform.settings import Settings, validate
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory, RunFacts, same_recipe
from mmva_platform.training.trainer import TrainResult


def finished_run(name: str, recipe: Recipe, settings: Settings) -> TrainResult | None:
    """What the run of this name came to; None if it has no model yet.

    Raises:
        UsageError: If the recipe is not the run's.
        CheckFailed: If the model's files are not what its SHA256SUMS says.
    """
    from mmva.bundle import read_bundle_info
    from mmva_platform.training.evaluation import Evaluation

    run = RunDirectory(settings.runs_dir / name)
    if run.path.parent != settings.runs_dir or not run.bundle.is_dir():
        return None
    same_recipe(run, recipe)
    facts = validate(RunFacts, run.read("run.json"), f"{run.path}/run.json")
    return TrainResult(
        run_name=name,
        run_dir=run.path,
        bundle_dir=run.bundle,
        bundle_digest=read_bundle_info(run.bundle).digest,
        history=run.read("history.json"),
        evaluation=Evaluation.from_json(run.read("evaluation.json")),
        recipe=recipe.model_copy(update={"name": name}),
        dataset_digest=facts.dataset_digest,
    )

"""A grid of recipes, searched with Ray Tune. Trials that fall behind end early (ASHA); the best recipe then gets a run.

A trial is the training loop in one process, on embeddings in shared memory. It computes the same as a run of its recipe
on any number of workers, but writes no checkpoint and no bundle.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, model_validator

from mmva.errors import OperationFailed, UsageError
from mmva_platform.settings import Config, Settings, set_dotted, validate
from mmva_platform.training.recipe import Recipe, fresh_name

if TYPE_CHECKING:
    from ray.tune import Callback

log = logging.getLogger(__name__)
Point = dict[str, Any]
Trial = dict[str, Any]
_CPUS: Final = 0.5
_MOST: Final = 1000


class SweepOptions(Config):
    """A sweep: a recipe, and the values to try."""

    recipe: dict[str, Any] = Field(description="the recipe that all trials share; features mode")
    grid: dict[str, list[Any]] = Field(
        min_length=1, description="dotted keys of the recipe and the values to try, such as optimizer.lr: [1e-4, 3e-4]"
    )
    name: str | None = Field(None, description="name of the best trial's run; default: a new one")
    at_once: int | None = Field(None, ge=1, description="trials at the same time; default: as many as CPUs allow")
    grace_epochs: int = Field(3, ge=1, description="epochs before a trial can be ended")
    reduction: int = Field(3, ge=2, description="at each rung of ASHA, one in so many trials continues")

    @model_validator(mode="after")
    def _has_points(self) -> SweepOptions:
        count = math.prod(len(values) for values in self.grid.values())
        if not 1 <= count <= _MOST:
            raise ValueError(f"grid: {count} trials; give every key at least one value, and at most {_MOST} in all")
        return self

    def points(self) -> list[Point]:
        """Every combination of the grid's values."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def recipe_at(self, point: Mapping[str, Any]) -> Recipe:
        """The trial's recipe. Raises UsageError if a key or value is not valid, or the mode is not features."""
        values: dict[str, Any] = {**self.recipe, "name": self.name}
        for key, value in point.items():
            set_dotted(values, key, value)
        recipe = validate(Recipe, values, "sweep")
        if recipe.mode != "features":
            raise UsageError("sweep: trials train on embeddings; set mode: features, then train the best in media mode")
        return recipe


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep."""

    best: Recipe
    trials: list[Trial]  # a row each: point, the metric's best value, epochs done, whether it was ended early, error
    metric: str  # the smallest value is best

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"metric": self.metric, "trials": self.trials}

    def to_text(self) -> str:
        """One line per trial, best first, failed ones last."""
        ordered = sorted(self.trials, key=lambda trial: math.inf if trial["value"] is None else trial["value"])
        lines = [f"{self.metric} of {len(self.trials)} trials"]
        for trial in ordered:
            value = trial["error"] if trial["value"] is None else f"{trial['value']:.5f}"
            epochs = f"{trial['epochs']:3d} epochs{' (ended early)' if trial['ended_early'] else ''}"
            lines.append(f"{value}  {epochs}  {', '.join(f'{key}={of}' for key, of in trial['point'].items())}")
        return "\n".join(lines)


def sweep(options: SweepOptions, settings: Settings, *, callbacks: Sequence[Callback] = ()) -> SweepResult:
    """Train every point of the grid. `callbacks` are Ray Tune's.

    Raises:
        UsageError: For a wrong key or value, trials on different embeddings, or embeddings that are missing or do not
            fit into memory.
        OperationFailed: If every trial failed.
    """
    from mmva_platform.cluster import check_feasible, ray_session

    recipes = [options.recipe_at(point) for point in options.points()]
    first = recipes[0]
    for key in ("dataset", "preset", "embeddings"):
        if len({getattr(recipe, key) for recipe in recipes}) > 1 or key in options.grid:
            raise UsageError(f"sweep: {key} cannot vary within one sweep; its trials share one set of embeddings")
    if len({recipe.checkpoint.metric for recipe in recipes}) > 1:
        raise UsageError("sweep: checkpoint.metric cannot vary; trials are compared by it")
    metric = first.checkpoint.metric
    with ray_session(settings.cluster):
        from mmva_platform.training.loop.features import share_features

        check_feasible(1, _CPUS)
        shared = share_features(first, settings)
        trials = _run(options, recipes, shared, settings, callbacks)
    finished = [trial for trial in trials if trial["value"] is not None and math.isfinite(trial["value"])]
    if not finished:
        raise OperationFailed(f"sweep: all {len(trials)} trials failed; train one of them to see why")
    best = min(finished, key=lambda trial: trial["value"])
    log.info("sweep: best of %d trials is %s (%s %.5f)", len(trials), best["point"], metric, best["value"])
    return SweepResult(options.recipe_at(best["point"]), trials, metric)


def _run(
    options: SweepOptions,
    recipes: list[Recipe],
    shared: Mapping[str, Any],
    settings: Settings,
    callbacks: Sequence[Callback],
) -> list[Trial]:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    metric, epochs = recipes[0].checkpoint.metric, max(recipe.epochs for recipe in recipes)
    grace = min(options.grace_epochs, epochs)
    scheduler = ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=grace, reduction_factor=options.reduction)
    place = str(settings.home.resolve() / "sweeps")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, shared=shared, options=options), {"cpu": _CPUS}),
        param_space={key: tune.grid_search(values) for key, values in options.grid.items()},
        tune_config=tune.TuneConfig(
            metric=metric, mode="min", scheduler=scheduler, max_concurrent_trials=options.at_once, reuse_actors=True
        ),
        run_config=tune.RunConfig(name=fresh_name("sweep"), storage_path=place, verbose=0, callbacks=[*callbacks]),
    )
    points, rows = options.points(), list[tuple[int, Trial]]()
    for result in tuner.fit():
        number = points.index(result.config)
        epochs_done = 0 if result.metrics_dataframe is None else len(result.metrics_dataframe)
        trial: Trial = {
            "point": result.config,
            "value": float(result.metrics_dataframe[metric].min()) if epochs_done else None,
            "epochs": epochs_done,
            "ended_early": result.error is None and epochs_done < recipes[number].epochs,
            "error": None if result.error is None else str(result.error).strip().splitlines()[-1],
        }
        rows.append((number, trial))
    return [trial for _, trial in sorted(rows, key=lambda row: row[0])]


def _trial(config: Point, shared: Mapping[str, Any], options: SweepOptions) -> None:
    """One trial, in Tune's process; reports each epoch."""
    import torch
    from ray import tune

    from mmva_platform.training.loop.features import shared_features
    from mmva_platform.training.loop.in_process import train_here
    from mmva_platform.training.loop.state import Row, TrainState

    class Reporter:
        def on_step_end(self, state: TrainState, row: Row | None) -> bool:
            del state
            if row is not None:
                numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
                tune.report(numbers | {"epoch": row["epoch"] + 1})
            return False

    torch.set_num_threads(1)
    recipe = options.recipe_at(config).model_copy(update={"refit_folds": 0})  # only the best trial's run refits
    train_here(recipe, shared_features(shared), Reporter())

"""A sweep's grid: every combination, each a valid recipe, mistakes named before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from mmva.errors import UsageError
from mmva_platform.settings import Settings, load_config
from mmva_platform.training.sweep import SweepOptions, SweepResult, sweep

RECIPE = {"dataset": "data", "preset": "tiny", "optimizer": {"betas": [0.5, 0.6]}}


def options(grid: dict[str, list[Any]], **changes: Any) -> SweepOptions:
    return SweepOptions(recipe=RECIPE | changes.pop("recipe", {}), grid=grid, **changes)


def test_every_combination_is_a_recipe() -> None:
    made = options({"optimizer.lr": [0.1, 0.2], "strategy": ["random", "matched"]}, name="grid")
    recipes = [made.recipe_at(point) for point in made.points()]
    assert [(r.optimizer.lr, r.strategy) for r in recipes] == [
        (0.1, "random"), (0.1, "matched"), (0.2, "random"), (0.2, "matched"),
    ]  # fmt: skip
    assert all(recipe.optimizer.betas == (0.5, 0.6) for recipe in recipes)
    assert {recipe.name for recipe in recipes} == {"grid"}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (options({"optimizer.rl": [1]}), "unknown key 'optimizer.rl'"),
        (options({"optimizer.lr": [-1]}), "optimizer.lr"),
        (options({"epochs": [1]}, recipe={"mode": "media"}), "set mode: features"),
        (options({"preset": ["tiny", "compact"]}), "preset cannot vary within one sweep"),
        (options({"checkpoint.metric": ["val_total", "val_va_mse"]}), "checkpoint.metric cannot vary"),
    ],
)
def test_a_mistake_is_named_before_ray_starts(made: SweepOptions, message: str) -> None:
    with pytest.raises(UsageError) as error:
        sweep(made, Settings())
    assert message in str(error.value)


def test_a_grid_without_points_or_with_too_many_is_refused() -> None:
    for grid in ({"epochs": []}, {"epochs": list(range(1, 1100))}, {}):
        with pytest.raises(UsageError, match="grid"):
            load_config(SweepOptions, None, [f"grid={grid}", "recipe={dataset: d}"])


def test_the_repositorys_grid_loads(repository: Any) -> None:
    made = load_config(SweepOptions, repository / "jobs" / "recipes" / "sweep.yaml")
    assert len([made.recipe_at(point) for point in made.points()]) == 9


def test_trials_are_told_best_first() -> None:
    trials = [
        {"point": {"a": 1}, "value": None, "epochs": 0, "ended_early": False, "error": "boom"},
        {"point": {"a": 2}, "value": 0.5, "epochs": 3, "ended_early": True, "error": None},
        {"point": {"a": 3}, "value": 0.25, "epochs": 9, "ended_early": False, "error": None},
    ]
    lines = SweepResult(options({"epochs": [1]}).recipe_at({}), trials, "val_total").to_text().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0.25000", "0.50000", "boom"]

"""The recipe: typed, strict, and every unknown of the method explained."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mmva.errors import UsageError
from mmva_platform.reproduction import load_reproduction
from mmva_platform.settings import load_config
from mmva_platform.training.recipe import Recipe, fresh_name


def test_recipes_of_the_repository_load(repository: Path) -> None:
    recipes = {path.stem: load_config(Recipe, path) for path in (repository / "jobs" / "recipes").glob("*.yaml")
               if path.stem in {"quickstart", "compact", "paper", "tiny", "media"}}  # fmt: skip
    assert {name: recipe.preset for name, recipe in recipes.items()} == {
        "quickstart": "compact",
        "compact": "compact",
        "paper": "paper",
        "tiny": "tiny",
        "media": "compact",
    }


def test_recipes_that_reproduce_the_paper_find_their_sources_in_one_folder(repository: Path) -> None:
    paths = sorted((repository / "jobs" / "recipes" / "reproduce").glob("*.yaml"))
    jobs = {path.stem: load_reproduction(path, "s3://bucket/all/", ["recipe.epochs=2"]) for path in paths}
    assert {name: [source.root for source in job.data.sources] for name, job in jobs.items()} == {
        "deam": ["s3://bucket/all/deam", "s3://bucket/all/oasis"],
        "imemnet-c": ["s3://bucket/all/"],
        "miniature": ["s3://bucket/all/"],
    }
    assert {(job.recipe.model.head, job.recipe.strategy, job.recipe.epochs) for job in jobs.values()} == {
        ("mlp", "random", 2)
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1e-3", "unknown key 'optimiser'; did you mean 'optimizer'"),
        ("optimizer.rigde=0", "unknown key 'optimizer.rigde'; did you mean 'ridge'"),
        ("model.hiden=3", "unknown key 'model.hiden'; did you mean 'hidden'"),
        ("optimizer.lr=-1", "optimizer.lr"),
        ("strategy=best", "strategy"),
        ("name=../elsewhere", "name"),
        ("workers=[3, 2]", "workers [3, 2]: the first number must not be larger than the second"),
        ("workers=0", "workers"),
        ("workers=1000", "batch_size 64 leaves some of the 1000 workers without a pair"),
        ("media.layers={image: -1}", "media.layers"),
        ("model.head=mlp", "set optimizer.ridge=0"),
        ("loss.similarity_over=all", "media.pieces"),
        ("refit_folds=1", "refit_folds: must be 0 or at least 2"),
        ("mode=medium", "mode"),
    ],
)
def test_a_mistake_is_one_line_with_the_field(override: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(Recipe, None, ["dataset=d", "media.pieces=2", override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_projections_need_a_hidden_layer() -> None:
    with pytest.raises(UsageError, match=r"projections need model\.hidden > 0"):
        load_config(Recipe, None, ["dataset=d", "loss.similarity_by=projections", "model.hidden=0"])


def test_what_the_paper_does_not_say_is_an_option_that_says_so() -> None:
    def descriptions(kind: type[BaseModel], prefix: str = "") -> dict[str, str]:
        found: dict[str, str] = {}
        for name, field in kind.model_fields.items():
            found[prefix + name] = field.description or ""
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                found |= descriptions(field.annotation, f"{prefix}{name}.")
        return found

    explained = descriptions(Recipe)
    unknown = [
        "model.hidden", "model.head", "model.activation", "mode", "optimizer.name", "optimizer.lr", "epochs",
        "loss.sigma", "loss.similarity_pairs", "loss.similarity_over",
        "loss.similarity_by",
    ]  # fmt: skip
    assert {name: "ot published" in explained[name] for name in unknown} == dict.fromkeys(unknown, True)


def test_fresh_names_sort_by_age() -> None:
    names = [fresh_name("tiny", datetime(2025, month, 1, tzinfo=UTC)) for month in (1, 2, 11)]
    assert names == sorted(names)
    assert names[0] == "20250101-000000-tiny"


def test_a_recipe_survives_json() -> None:
    recipe = load_config(Recipe, None, ["dataset=d", "optimizer.betas=[0.8, 0.9]", "strategy=matched"])
    values: dict[str, Any] = recipe.model_dump(mode="json")
    assert Recipe.model_validate(values) == recipe


def test_recipes_of_earlier_models_stay_readable() -> None:
    recipe = Recipe.model_validate({"dataset": "d", "optimizer": {"name": "adam", "lr": 1e-3}, "workers": 2})
    assert (recipe.optimizer.name, recipe.optimizer.weight_decay, recipe.worker_range) == ("adamw", 0.0, (2, 2))

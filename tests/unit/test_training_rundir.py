"""Run directories: a name is used once, and a run continues only as itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmva.errors import UsageError
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory, RunFacts, create_run, resume_run

FACTS = RunFacts(dataset_digest="d" * 64, fingerprints={"image": "i" * 64})


def recipe_of(**changes: Any) -> Recipe:
    return Recipe.model_validate({"dataset": "data", "name": "first", **changes})


def test_a_name_is_never_used_twice(tmp_path: Path) -> None:
    run = create_run(tmp_path, recipe_of(), FACTS)
    (run.path / "state").write_text("kept")
    with pytest.raises(UsageError, match="run 'first' exists already; continue it with --resume first"):
        create_run(tmp_path, recipe_of(), FACTS)
    assert (run.path / "state").read_text() == "kept"


def test_an_unnamed_run_gets_a_name(tmp_path: Path) -> None:
    run = create_run(tmp_path, recipe_of(name=None, preset="tiny"), FACTS)
    assert run.name.endswith("-tiny")
    assert run.read("recipe.json")["dataset"] == "data"


def test_resume_takes_the_same_recipe_on_other_workers(tmp_path: Path) -> None:
    create_run(tmp_path, recipe_of(), FACTS)
    assert resume_run(tmp_path, "first", recipe_of(name=None, workers=1), FACTS).path == tmp_path / "first"


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        ({"epochs": 99}, FACTS, "the recipe changed (epochs: 40 then, 99 now)"),
        ({"optimizer": {"lr": 0.5}}, FACTS, "the recipe changed (optimizer"),
        ({}, FACTS.model_copy(update={"dataset_digest": "e" * 64}), "the data changed (dataset_digest"),
        ({}, FACTS.model_copy(update={"fingerprints": {"image": "j" * 64}}), "the data changed (fingerprints"),
    ],
)
def test_resume_refuses_what_would_compute_something_else(
    tmp_path: Path, changes: dict[str, Any], facts: RunFacts, message: str
) -> None:
    create_run(tmp_path, recipe_of(epochs=40), FACTS)
    with pytest.raises(UsageError) as error:
        resume_run(tmp_path, "first", recipe_of(**{"epochs": 40, **changes}), facts)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_resume_refuses_a_finished_run(tmp_path: Path) -> None:
    create_run(tmp_path, recipe_of(), FACTS).bundle.mkdir()
    with pytest.raises(UsageError, match="this run is finished"):
        resume_run(tmp_path, "first", recipe_of(), FACTS)


@pytest.mark.parametrize("name", ["unknown", "../first", "", "."])
def test_resume_needs_a_run_of_this_home(tmp_path: Path, name: str) -> None:
    create_run(tmp_path, recipe_of(), FACTS)
    with pytest.raises(UsageError, match="no such run"):
        resume_run(tmp_path, name, recipe_of(), FACTS)


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="not a training run"):
        resume_run(tmp_path, "other", recipe_of(), FACTS)
    assert RunDirectory(tmp_path / "other").name == "other"

"""Run directories: a name is used once, a run continues only as itself, and all of it lives on any storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmva.errors import UsageError
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory, RunFacts, create_run, find_run, resume_run, stored_recipe

FACTS = RunFacts(dataset_digest="d" * 64, fingerprints={"image": "i" * 64})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home of this test's own."""
    return Settings(home=tmp_path)


def recipe_of(**changes: Any) -> Recipe:
    return Recipe.model_validate({"dataset": "data", "name": "first", **changes})


def finish(run: RunDirectory) -> None:
    run.bundle.mkdir(parents=True)
    for name in ("model.safetensors", "SHA256SUMS"):
        (run.bundle / name).write_text(name)
    run.publish_bundle()


def test_a_name_is_never_used_twice(settings: Settings) -> None:
    run = create_run(settings, recipe_of(), FACTS)
    (run.path / "state").write_text("kept")
    with pytest.raises(UsageError, match="run 'first' exists already; continue it with --resume first"):
        create_run(settings, recipe_of(), FACTS)
    assert (run.path / "state").read_text() == "kept"


def test_an_unnamed_run_gets_a_name(settings: Settings) -> None:
    run = create_run(settings, recipe_of(name=None, preset="tiny"), FACTS)
    assert run.name.endswith("-tiny")
    assert run.read("recipe.json")["dataset"] == "data"
    assert Recipe.model_validate(stored_recipe(run)).name == run.name


@pytest.mark.parametrize(
    "changes",
    [
        {"name": None, "workers": 1},
        {"checkpoint": {"every_s": 0, "keep": 3}},
        {"media": {"pieces": 4, "recompute": True, "loaders": 2}},
    ],
)
def test_resume_may_change_where_and_in_how_much_memory(settings: Settings, changes: dict[str, Any]) -> None:
    create_run(settings, recipe_of(), FACTS)
    assert resume_run(settings, "first", recipe_of(**changes), FACTS).name == "first"


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        ({"epochs": 99}, FACTS, "the recipe changed (epochs: 40 then, 99 now)"),
        ({"optimizer": {"lr": 0.5}}, FACTS, "the recipe changed (optimizer.lr: 0.0003 then, 0.5 now)"),
        ({"media": {"layers": {"image": 1}}}, FACTS, "the recipe changed (media.layers."),
        ({}, FACTS.model_copy(update={"dataset_digest": "e" * 64}), "the data changed (dataset_digest"),
        ({}, FACTS.model_copy(update={"fingerprints": {"image": "j" * 64}}), "the data changed (fingerprints"),
    ],
)
def test_resume_refuses_what_would_compute_something_else(
    settings: Settings, changes: dict[str, Any], facts: RunFacts, message: str
) -> None:
    create_run(settings, recipe_of(epochs=40), FACTS)
    with pytest.raises(UsageError) as error:
        resume_run(settings, "first", recipe_of(**{"epochs": 40, **changes}), facts)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_resume_forgets_rays_list_and_all_but_the_newest_checkpoints(settings: Settings) -> None:
    run = create_run(settings, recipe_of(), FACTS)
    (run.path / "checkpoint_manager_snapshot.json").write_text('{"cut')
    for done in (1, 2, 3):
        (run.path / f"checkpoint_000000-00000000{done}-abcdef").mkdir()
    resume_run(settings, "first", recipe_of(), FACTS)
    left = sorted(path.name for path in run.path.iterdir() if path.name.startswith("checkpoint"))
    assert left == [f"checkpoint_000000-00000000{done}-abcdef" for done in (2, 3)]


def test_resume_refuses_checkpoints_of_an_earlier_version(settings: Settings) -> None:
    run = create_run(settings, recipe_of(), FACTS)
    run.storage.write("checkpoints/000001-000000000-0123456789abcdef.pt", b"state")
    with pytest.raises(UsageError, match="its checkpoints were written by an earlier version"):
        resume_run(settings, "first", recipe_of(), FACTS)


def test_resume_refuses_a_finished_run(settings: Settings) -> None:
    finish(create_run(settings, recipe_of(), FACTS))
    with pytest.raises(UsageError, match="this run is finished"):
        resume_run(settings, "first", recipe_of(), FACTS)


@pytest.mark.parametrize("name", ["unknown", "../first", "", "."])
def test_resume_needs_a_run_of_this_home(settings: Settings, name: str) -> None:
    create_run(settings, recipe_of(), FACTS)
    with pytest.raises(UsageError, match="no such run"):
        find_run(settings, name)


def test_a_run_on_object_storage_has_its_bundle_there_and_here(s3_endpoint: str, tmp_path: Path) -> None:
    settings = [
        Settings(home=tmp_path / home, runs="s3://media/runs", storage=StorageSettings(s3_endpoint=s3_endpoint))
        for home in ("one", "two")
    ]
    run = create_run(settings[0], recipe_of(), FACTS)
    assert not find_run(settings[1], "first").finished()
    finish(run)
    elsewhere = find_run(settings[1], "first")
    assert elsewhere.finished()
    assert (elsewhere.bundle / "model.safetensors").read_text() == "model.safetensors"
    assert elsewhere.bundle == tmp_path / "two" / "runs" / "first" / "bundle"

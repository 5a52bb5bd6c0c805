"""`mmva train`, `mmva evaluate` and `mmva reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

from mmva_platform.cli.context import Json, emit, settings_of


def train(
    context: typer.Context,
    *,
    config: Annotated[Path | None, typer.Option(help="the recipe: a YAML file")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe; repeatable")] = None,
    resume: Annotated[str | None, typer.Option(help="name of the run to resume; no other option is needed")] = None,
    sweep: Annotated[Path | None, typer.Option(help="search a grid (YAML file), then train the best recipe")] = None,
    as_json: Json = False,
) -> None:
    """Train on Ray, log the run to MLflow and register the model as a new version."""
    from mmva.errors import UsageError
    from mmva_platform.settings import load_config
    from mmva_platform.training.recipe import Recipe
    from mmva_platform.workflows import resume_and_register, sweep_and_register, train_and_register

    if sweep is not None:
        from mmva_platform.training.sweep import SweepOptions

        if config or resume:
            raise UsageError("--sweep: the grid has its own recipe; leave --config and --resume out")
        found, best = sweep_and_register(load_config(SweepOptions, sweep, set_ or []), settings_of(context))
        emit(f"{found.to_text()}\n\n{best.to_text()}", {**best.to_json(), **found.to_json()}, as_json=as_json)
        return
    if resume is not None:
        outcome = resume_and_register(
            resume, settings_of(context), lambda own: load_config(Recipe, config, set_ or [], base=own)
        )
    else:
        outcome = train_and_register(load_config(Recipe, config, set_ or []), settings_of(context))
    emit(outcome.to_text(), outcome.to_json(), as_json=as_json)


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="a bundle's folder, runs:/... or models:/mmva@champion")],
    dataset: Annotated[str, typer.Argument(help="the dataset: a folder or URI")],
    *,
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="train the model's recipe again on this many folds by group, and measure all rows"),
    ] = None,
    clip_split: Annotated[
        bool, typer.Option(help="also show figures of the recipe on a split by clip, which leaks, for comparison")
    ] = True,
    embeddings: Annotated[
        str | None, typer.Option(help="URI of the embeddings; default: inside the dataset, or as in the training")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model on every row of a split, with intervals, next to the best constant and a split by clip."""
    from mmva_platform.workflows import evaluate_model

    evaluation = evaluate_model(
        model, dataset, settings_of(context), split=split, clip_split=clip_split, embeddings=embeddings, folds=folds
    )
    emit(evaluation.to_markdown(), evaluation.to_json(), as_json=as_json)


def reproduce(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(help="folder or URI of the files")],
    *,
    config: Annotated[Path, typer.Option(help="a file of jobs/recipes/reproduce")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the file; repeatable")] = None,
    as_json: Json = False,
) -> None:
    """Import, embed and train as the paper does; print the test figures of both splits next to the published ones."""
    from mmva_platform.reproduction import load_reproduction, reproduce

    evaluation = reproduce(load_reproduction(config, folder, set_ or []), settings_of(context))
    emit(evaluation.to_markdown(), evaluation.to_json(), as_json=as_json)

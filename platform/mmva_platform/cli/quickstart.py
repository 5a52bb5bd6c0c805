"""`mmva quickstart`."""

from pathlib import Path
from typing import Annotated

import typer

from mmva.errors import CheckFailed
from mmva_platform.cli.context import emit, settings_of


def add_verbs(root: typer.Typer) -> None:
    """Put the verb on the root command."""
    root.command("quickstart")(quickstart)


def quickstart(
    context: typer.Context,
    *,
    workdir: Annotated[Path | None, typer.Option(help="new folder [default: mmva-quickstart, -2, -3, ...]")] = None,
    catalog: Annotated[str | None, typer.Option(help="your own folder of pictures, music and captions")] = None,
    preset: Annotated[str, typer.Option(help="backbones: compact, or tiny for a dry run")] = "compact",
    images: Annotated[int, typer.Option(min=60)] = 700,
    clips: Annotated[int, typer.Option(min=60)] = 700,
    epochs: Annotated[int, typer.Option(min=1)] = 40,
    seed: int = 0,
) -> None:
    """Generate, import, embed, train, evaluate, promote, annotate, report: everything once, in a few minutes."""
    from mmva_platform.quickstart.flow import QuickstartOptions, run_quickstart

    options = QuickstartOptions(
        workdir=workdir, catalog=catalog, preset=preset, images=images, clips=clips, epochs=epochs, seed=seed
    )
    result = run_quickstart(options, settings_of(context))
    emit(result.closing, None, as_json=False)
    if result.refused:
        raise CheckFailed(result.refused)

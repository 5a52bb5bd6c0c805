"""`mmva quickstart`."""

from pathlib import Path
from typing import Annotated

import typer

from mmva.errors import CheckFailed
from mmva_platform.cli.context import emit, settings_of


def quickstart(
    context: typer.Context,
    *,
    workdir: Annotated[Path | None, typer.Option(help="new folder; default: mmva-quickstart, -2, -3, ...")] = None,
    catalog: Annotated[str | None, typer.Option(help="instead annotate this folder, with the starter")] = None,
    preset: Annotated[str, typer.Option(help="backbones: compact, or tiny for a dry run")] = "compact",
    images: Annotated[int, typer.Option(min=60, help="how many pictures to generate")] = 700,
    clips: Annotated[int, typer.Option(min=60, help="how many clips of music to generate")] = 700,
    epochs: Annotated[int, typer.Option(min=1, help="how long to train")] = 40,
    seed: Annotated[int, typer.Option(help="another number gives other media and another split")] = 0,
) -> None:
    """Run every step once, on generated media, in a few minutes: import, embed, train, promote, annotate, report."""
    from mmva_platform.quickstart.flow import QuickstartOptions, run_quickstart

    options = QuickstartOptions(
        workdir=workdir, catalog=catalog, preset=preset, images=images, clips=clips, epochs=epochs, seed=seed
    )
    result = run_quickstart(options, settings_of(context))
    emit(result.closing, None, as_json=False)
    if result.refused:
        raise CheckFailed(result.refused)

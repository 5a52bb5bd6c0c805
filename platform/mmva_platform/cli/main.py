"""The `mmva` command: assembles the verbs, and turns the three kinds of failure into one line and an exit code."""

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mmva_platform.cli import annotation, config, data, doctor, jobs, models, quickstart, serving, training, zeroshot
from mmva_platform.cli.context import (
    AGAIN,
    emit,
    exit_code_of,
    leave,
    make_settings,
    opening_line,
    set_up_logging,
    turn_telemetry_off,
)
from mmva_platform.cli.faults import check_arguments
from mmva_platform.progress import FIRST_LINE_S, first_line

app = typer.Typer(
    name="mmva",
    help="Train MMVA, annotate catalogs with valence-arousal points, govern the models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_GROUPS = {
    "data": data.app,
    "models": models.app,
    "annotations": annotation.app,
    "jobs": jobs.app,
    "config": config.app,
}
for name, group in _GROUPS.items():
    app.add_typer(group, name=name)
_VERBS: tuple[Callable[..., None], ...] = (
    quickstart.quickstart, data.embed, training.train, training.evaluate, training.reproduce, annotation.annotate,
    zeroshot.search, zeroshot.music_prompt, zeroshot.summarize, serving.serve, serving.explore, doctor.doctor,
)  # fmt: skip
for verb in _VERBS:
    app.command()(verb)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it
    if not wanted:
        return
    try:
        found = version("mmva-platform")
    except PackageNotFoundError:  # run from a folder, as submitted jobs are
        found = "of this folder, not installed"
    emit(f"mmva {found}", None, as_json=False)
    raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(envvar="MMVA_HOME", help="folder of runs, the registry and caches; default: ./mmva-home"),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(envvar="MMVA_SETTINGS", help="YAML file of storage, cluster and tracking settings")
    ] = None,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="also log messages of the libraries")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="print the version and exit", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options that come before the verb."""
    del show_version
    set_up_logging(verbose=verbose)
    context.obj = make_settings(settings, home)


def main() -> NoReturn:
    """Entry point of the console script.

    Exit code 0 done, 1 failed, 2 wrong usage, 3 refused by a gate or a check, 130 stopped by Ctrl-C, 143 by SIGTERM.
    """
    turn_telemetry_off()
    verb = verb_of(sys.argv[1:])
    with first_line(opening_line(f"mmva {verb}", AGAIN.get(verb)), FIRST_LINE_S):
        code = run(sys.argv[1:])
    leave(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; an expected failure is one line on stderr."""

    def command() -> None:
        check_arguments(arguments)
        app(arguments, standalone_mode=True)

    return exit_code_of(command, AGAIN.get(verb_of(arguments)))


def verb_of(arguments: Sequence[str]) -> str:
    """The verb of a command line with its noun, such as "annotations resume"; empty if there is none."""
    words = iter(arguments)
    for word in words:
        if word in {"--home", "--settings"}:
            next(words, None)
        elif not word.startswith("-"):
            return f"{word} {next(words, '')}" if word in _GROUPS else word
    return ""

"""The `mmva` command: assembles the verbs, turns the three kinds of failure into one line and an exit code."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mmva_platform.cli import annotation, data, doctor, jobs, models, quickstart, serving, training, zeroshot
from mmva_platform.cli.context import exit_code_of, leave, make_settings, set_up_logging, turn_telemetry_off
from mmva_platform.cli.faults import check_arguments

app = typer.Typer(
    name="mmva",
    help="Train MMVA, annotate catalogs with valence-arousal points, govern the models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(annotation.app, name="annotations")
app.add_typer(jobs.app, name="jobs")
# How to resume what Ctrl-C stopped. The other verbs have nothing to resume.
_AGAIN = {
    **dict.fromkeys(
        ("annotate", "resume", "update", "retry", "convert", "import", "embed", "quickstart"),
        "the same command resumes",
    ),
    "train": "the same command with --resume RUN starts at the last checkpoint (RUN is the newest folder in HOME/runs)",
}
for module in (quickstart, data, training, annotation, zeroshot, serving, doctor):
    module.add_verbs(app)


@app.callback()
def options(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(envvar="MMVA_HOME", help="where runs, the registry and caches live [default: ./mmva-home]"),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(envvar="MMVA_SETTINGS", help="YAML file of storage, cluster and tracking settings")
    ] = None,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log what the libraries say, too")] = False,
) -> None:
    """Options that come before the verb."""
    set_up_logging(verbose=verbose)
    context.obj = make_settings(settings, home)


def main() -> NoReturn:
    """Entry point of the console script.

    Exit code 0 done, 1 failed, 2 wrong usage, 3 a gate or check said no, 130 stopped by Ctrl-C.
    """
    turn_telemetry_off()
    leave(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; expected failures are one line on stderr."""

    def command() -> None:
        check_arguments(arguments)
        app(arguments, standalone_mode=True)

    verb = next((word for word in arguments if word in _AGAIN), "")
    return exit_code_of(command, _AGAIN.get(verb))

"""Shared by the verbs and the job scripts: settings, logging, exit codes, and printing a result as text or JSON."""

import contextlib
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.cli.faults import check_home, explain, locale_fault, remedy
from mmva_platform.draining import exit_on_sigterm
from mmva_platform.monitoring.logs import write_json_logs
from mmva_platform.settings import Settings, load_config

DONE, FAILED, WRONG_USAGE, SAID_NO, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 128 + signal.SIGTERM
_RESUMES = "what is finished is kept, and the same command resumes"
# By verb, how to resume what Ctrl-C or SIGTERM stopped. The other verbs have nothing to resume.
AGAIN = {
    "annotate": _RESUMES,
    **{f"annotations {verb}": _RESUMES for verb in ("resume", "update", "retry", "restore", "convert")},
    "data import": "the same command begins again, and makes the same dataset",
    "embed": _RESUMES,
    "quickstart": "the same command begins again, in a new folder",
    "reproduce": "the same command keeps the dataset and its embeddings, and trains again",
    "train": "mmva train --resume RUN starts at the last checkpoint (the lines above name RUN); a sweep begins again",
}
_TOLD_TO_STOP = {TERMINATED, signal.SIGTERM}  # our own handler's code, and that of Ray's, which replaces it
logger = logging.getLogger(__name__)
_chosen: ContextVar[Settings | None] = ContextVar("mmva_cli_settings", default=None)  # for messages that name the home
# Set before any of the libraries is imported; the user's own environment wins.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}

Json = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


def turn_telemetry_off() -> None:
    """Turn off usage statistics of the libraries, unless the environment turns them on."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def set_up_logging(*, verbose: bool) -> None:
    """Log our own messages to stderr, and the libraries' on request. Escape characters that a terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    for name in ("mmva", "mmva_platform"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
    if fault := locale_fault():
        logger.warning("%s", fault)


def opening_line(what: str, again: str | None) -> str:
    """The line that a command prints if it has nothing else to say within a few seconds; `again` as in exit_code_of."""
    stop = f"Ctrl-C stops it; {again}" if again else "Ctrl-C stops it"
    return f"{what}: starts, loads libraries and looks up what it needs. {stop}"


def exit_code_of(command: Callable[[], object], again: str | None = None) -> int:
    """Run a command; expected failures become one line on stderr and their exit code, bugs keep their traceback.

    `again` says how to resume after Ctrl-C or SIGTERM; None if nothing can be resumed.
    """
    try:
        with exit_on_sigterm():
            command()
    except SystemExit as finished:
        if isinstance(finished.code, str):  # Python's own meaning: a message, and a failure
            return _complain(finished.code, FAILED)
        code = DONE if finished.code is None else finished.code
        if code == INTERRUPTED:  # so Typer answers Ctrl-C
            return _stopped("Ctrl-C", again, INTERRUPTED)
        return _stopped("SIGTERM", again, TERMINATED) if code in _TOLD_TO_STOP else code
    except KeyboardInterrupt:
        return _stopped("Ctrl-C", again, INTERRUPTED)
    except Exception as error:
        said, code = _explained(error)
        if said is None:
            raise
        return _complain(said, code)
    return DONE


def _explained(error: Exception) -> tuple[str | None, int]:
    for kind, code in ((UsageError, WRONG_USAGE), (CheckFailed, SAID_NO), (OperationFailed, FAILED)):
        if isinstance(error, kind):
            return f"{error}{remedy(error)}", code
    return explain(error, _chosen.get()), FAILED


def leave(code: int) -> NoReturn:
    """Flush the output and end the process with this exit code, without the interpreter's own shutdown.

    In that shutdown, native threads of the numeric libraries race their destructors: one in four finished
    `mmva annotate` calls aborted with 134 instead of 0. All sessions and files are already closed at this point.
    """
    logging.shutdown()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def make_settings(path: Path | None, home: Path | None) -> Settings:
    """Load the settings of this call (--home overrides the file) and apply those of the logs."""
    settings = load_config(Settings, path, [] if home is None else [f"home={json.dumps(str(home))}"])
    if settings.logs.format == "json":
        write_json_logs()
    _chosen.set(settings)
    check_home(settings.home)
    return settings


def settings_of(context: typer.Context) -> Settings:
    """Settings that the callback put on the context."""
    assert isinstance(context.obj, Settings)
    return context.obj


def emit(text: str, value: Any, *, as_json: bool) -> None:
    """Print the text, or the value as JSON, on standard output."""
    sys.stdout.write((json.dumps(value, indent=2, default=str) if as_json else text.rstrip("\n")) + "\n")


def _stopped(by: str, again: str | None, code: int) -> int:
    return _complain(f"stopped by {by}" + (f"; {again}" if again else ""), code)


def _complain(reason: object, code: int) -> int:
    sys.stderr.write(f"mmva: {reason}\n")
    return code

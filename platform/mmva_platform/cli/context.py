"""What the verbs and the job scripts share: settings, logging, exit codes, and the two ways to print a result."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.monitoring.logs import write_json_logs
from mmva_platform.settings import Settings, load_config

DONE, FAILED, WRONG_USAGE, SAID_NO = 0, 1, 2, 3
# Set before any of the libraries is imported; the user's own environment wins.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}

Json = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


def turn_telemetry_off() -> None:
    """No usage statistics leave this machine unless the environment asks for it."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def set_up_logging(*, verbose: bool) -> None:
    """Our own messages on stderr; the libraries' only on request."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    for name in ("mmva", "mmva_platform"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command; expected failures become one line on stderr and their exit code, bugs keep their traceback."""
    try:
        command()
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else DONE
    except UsageError as error:
        return _complain(error, WRONG_USAGE)
    except CheckFailed as error:
        return _complain(error, SAID_NO)
    except OperationFailed as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return _complain("stopped; what is committed stays, the same command goes on from there", FAILED)
    return DONE


def leave(code: int) -> NoReturn:
    """End the process with this exit code, everything flushed, without tearing the interpreter down.

    Native threads of the numeric libraries race their own destructors there: one in four finished `mmva annotate` calls
    aborted with 134 instead of 0. Sessions and files are closed by whoever opened them, so nothing is lost here.
    """
    logging.shutdown()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def make_settings(path: Path | None, home: Path | None) -> Settings:
    """Settings of this call: the file's values, with --home on top. From here on logs are as they say."""
    settings = load_config(Settings, path, [] if home is None else [f"home={json.dumps(str(home))}"])
    if settings.logs.format == "json":
        write_json_logs()
    return settings


def settings_of(context: typer.Context) -> Settings:
    """Settings that the callback put on the context."""
    assert isinstance(context.obj, Settings)
    return context.obj


def emit(text: str, value: Any, *, as_json: bool) -> None:
    """Print the text for a person or the value for a machine, on standard output."""
    sys.stdout.write((json.dumps(value, indent=2, default=str) if as_json else text.rstrip("\n")) + "\n")


def _complain(reason: object, code: int) -> int:
    sys.stderr.write(f"mmva: {reason}\n")
    return code

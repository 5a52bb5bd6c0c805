"""The second entry point: `python jobs/VERB.py --config FILE --set key=value`, for `ray job submit` and schedulers."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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
from mmva_platform.progress import FIRST_LINE_S, first_line
from mmva_platform.settings import Config, Settings, load_config

JobT = TypeVar("JobT", bound=Config)
_VERBS = {"ingest": "data import", "sweep": "train"}  # of the scripts that are named otherwise than their verb


def run_job(kind: type[JobT], job: Callable[[JobT, Settings], Any], arguments: list[str] | None = None) -> None:
    """Load the job's configuration (`--config`), run it, print its JSON-able result, and exit as `mmva` does."""
    parser = argparse.ArgumentParser(description=kind.__doc__)
    parser.add_argument("--config", type=Path, help="YAML file of the job")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the file")
    parser.add_argument("--settings", type=Path, help="YAML file of storage, cluster and tracking settings")
    parser.add_argument("--home", type=Path, help="folder of runs, the registry and caches")
    parser.add_argument("--verbose", action="store_true", help="also log messages of the libraries")
    options = parser.parse_args(arguments)
    turn_telemetry_off()
    set_up_logging(verbose=options.verbose)

    def work() -> None:
        settings = make_settings(options.settings, options.home)
        emit("", job(load_config(kind, options.config, options.set), settings), as_json=True)

    script = Path(sys.argv[0])
    again = AGAIN.get(_VERBS.get(script.stem, script.stem))
    # The script has imported its libraries already, and some of them take seconds.
    with first_line(opening_line(script.name, again), max(0.0, FIRST_LINE_S - time.process_time())):
        code = exit_code_of(work, again)
    leave(code)

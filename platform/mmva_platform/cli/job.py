"""The second entry point: `python jobs/VERB.py --config FILE --set key=value`, for `ray job submit` and schedulers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mmva_platform.cli.context import emit, exit_code_of, leave, make_settings, set_up_logging, turn_telemetry_off
from mmva_platform.settings import Config, Settings, load_config

JobT = TypeVar("JobT", bound=Config)


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

    leave(exit_code_of(work))

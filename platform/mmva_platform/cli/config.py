"""`mmva config show`: the settings that the other verbs use, and where each value comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from mmva_platform.cli.context import Json, emit, settings_of
from mmva_platform.settings import Settings, without_password

app = typer.Typer(help="Settings: show.", no_args_is_help=True)
_MASKED = "..."


@app.command("show")
def show(context: typer.Context, *, as_json: Json = False) -> None:
    """Print every setting with its value and its source; passwords and digests of keys are masked."""
    root = context.find_root()
    source = root.get_parameter_source("home")
    home = {"COMMANDLINE": "--home", "ENVIRONMENT": "MMVA_HOME"}.get(source.name if source else "")
    rows = effective(settings_of(context), root.params.get("settings"), home)
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}  ({source})" for key, value, source in rows]
    emit("\n".join(lines), {key: {"value": value, "source": source} for key, value, source in rows}, as_json=as_json)


def effective(settings: Settings, file: Path | None, home: str | None) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted key, plain value, source), in the order of definition.

    `file` is the settings file, `home` the option or variable that sets the home, if there is one.
    """
    values = {key: (value, str(file) if given else "default") for key, value, given in _leaves(settings)}
    values["home"] = (str(settings.home.resolve()), home or values["home"][1])
    # Defaults that depend on the environment or on the home.
    for key, variable, value in (
        ("runs", None, settings.runs_uri),
        ("tracking.uri", "MLFLOW_TRACKING_URI", settings.tracking_uri),
        ("cluster.address", "RAY_ADDRESS", os.environ.get("RAY_ADDRESS")),
    ):
        if values[key][0] is None:
            values[key] = (value, variable if variable and os.environ.get(variable) else "default")
    return [(key, _masked(value), source) for key, (value, source) in values.items()]


def _leaves(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Dotted key, plain value, and whether the value was given."""
    plain = config.model_dump(mode="json")
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", plain[name], name in config.model_fields_set


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return without_password(value)
    if isinstance(value, list):
        return [_masked(one) for one in value]
    if isinstance(value, dict):
        return {key: _MASKED if key == "sha256" else _masked(one) for key, one in value.items()}
    return value

"""Write docs/reference/cli.md and docs/reference/settings.md from the code: `make references`.

A test writes them again into a temporary folder and compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from mmva_platform.cli.main import app
from mmva_platform.settings import Config, Settings
from mmva_platform.tracking.gate.policy import GatePolicy
from mmva_platform.training.recipe import Recipe

FOLDER = Path(__file__).resolve().parent / "reference"
_COMMANDS = """# Commands

Written by `make references` from the code; do not edit. `mmva VERB --help` prints the same.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by a gate or a check, 130 stopped by Ctrl-C, 143 by SIGTERM.
Results go to standard output, everything else to standard error. `--json` prints one JSON object instead of text.
`mmva --install-completion` sets up completion by the Tab key for your shell.

## Options before the verb
"""
_CONFIGURATIONS: dict[str, tuple[type[Config], str]] = {
    "Settings": (
        Settings,
        """`mmva --settings FILE VERB ...`, or the environment variable `MMVA_SETTINGS`. `mmva config show` prints the
values in use and where each comes from. Credentials are not settings: the libraries read them from the environment
(`AWS_...`, `MLFLOW_TRACKING_USERNAME`, `RAY_AUTH_TOKEN_PATH`).""",
    ),
    "Recipe of a training": (
        Recipe,
        "`mmva train --config FILE`, and `--set KEY=VALUE` for single keys. Examples are in `jobs/recipes/`.",
    ),
    "Policy of the gate": (
        GatePolicy,
        "`mmva models promote VERSION --policy FILE`. [registry.md](../registry.md) explains the rules.",
    ),
}
_KEYS = """# Keys of configuration files

Written by `make references` from the code; do not edit.

All files are YAML. An unknown key or a value out of range is an error that names the key. A dotted key `a.b` is
`a: {b: ...}` in a file; `a[].b` is the key `b` of each entry of the list `a`.
"""


def command_page() -> str:
    """The page of all verbs."""
    root: Any = typer.main.get_command(app)
    return "\n".join([_COMMANDS, _table(root), *_sections(root, "mmva", "##")])


def settings_page() -> str:
    """The page of all keys of configuration files."""
    parts = [_KEYS]
    for title, (kind, text) in _CONFIGURATIONS.items():
        schema = kind.model_json_schema()
        rows = [f"| `{key}` | {values} | {default} | {text} |" for key, values, default, text in _keys(schema, schema)]
        parts += [f"## {title}\n\n{text}\n", "| key | value | default | meaning |\n|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _sections(group: Any, path: str, level: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items(), key=lambda pair: hasattr(pair[1], "commands")):
        if hasattr(command, "commands"):
            yield f"\n{level} {path} {name}\n\n{command.help}"
            yield from _sections(command, f"{path} {name}", level + "#")
            continue
        arguments = " ".join(
            one.metavar or one.name.upper() for one in command.params if one.param_type_name == "argument"
        )
        yield f"\n{level} {path} {name} {arguments}".rstrip() + f"\n\n{' '.join(command.help.split())}\n"
        yield _table(command)


def _table(command: Any) -> str:
    rows = [_row(one) for one in command.params if not getattr(one, "hidden", False)]
    return "\n".join(["| | default | meaning |", "|---|---|---|", *rows]) if rows else ""


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name, default = parameter.metavar or parameter.name.upper(), "required"
    else:
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
        default = "required" if parameter.required else _default(parameter)
    text = getattr(parameter, "help", None) or ""
    if parameter.envvar:
        text += f"; environment variable `{parameter.envvar}`"
    return f"| `{name}` | {default} | {_cell(text)} |"


def _default(option: Any) -> str:
    if option.is_flag:
        return f"`{option.opts[0]}`" if option.secondary_opts and option.default else ""
    if isinstance(option.default, tuple | list):
        return f"`{' '.join(map(str, option.default))}`"
    return "" if option.default is None else f"`{option.default}`"


def _keys(schema: dict[str, Any], root: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Dotted key, values, default and meaning of every leaf of a schema."""
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        inner = _resolved(field, root)
        if "properties" in inner:
            yield from _keys(inner, root, f"{prefix}{name}.")
            continue
        default = "required" if name in required else f"`{json.dumps(field.get('default'))}`"
        yield prefix + name, _values(field, root), _cell(default), _cell(field.get("description", ""))
        choices = [_resolved(one, root) for one in field.get("anyOf", [])]
        for one in (_resolved(field.get("items", {}), root), *choices):
            if "properties" in one:
                yield from _keys(one, root, f"{prefix}{name}{'' if choices else '[]'}.")


def _values(field: dict[str, Any], root: dict[str, Any]) -> str:
    """The values that a key takes, in words."""
    field = _resolved(field, root)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_values(one, root) for one in field["anyOf"]))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kind = {"string": "text", "integer": "whole number", "boolean": "true or false"}.get(field.get("type", ""))
    kind = kind or str(field.get("type", "any"))
    if kind == "array":
        inner = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {_values(inner, root)}"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {_values(inner, root)}" if isinstance(inner, dict) else "mapping"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[name]:,}" for name, sign in signs.items() if name in field]
    return " ".join([kind, ", ".join(limits)]).rstrip()


def _resolved(field: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """A field with its reference replaced by what it refers to."""
    reference = field.get("$ref")
    return {**root["$defs"][reference.rpartition("/")[2]], **field} if reference else field


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(folder: Path) -> None:
    """Write both pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cli.md").write_text(command_page() + "\n", encoding="utf-8")
    (folder / "settings.md").write_text(settings_page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)

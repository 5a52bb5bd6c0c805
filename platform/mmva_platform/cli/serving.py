"""`mmva serve`: the HTTP API; and what `serve deploy deploy/serve.yaml` imports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmva_platform.cli.context import emit, settings_of
from mmva_platform.settings import ServingSettings, Settings, load_config, validate

if TYPE_CHECKING:
    from ray import serve as ray_serve


def add_verbs(root: typer.Typer) -> None:
    """Put the verbs without a noun on the root command."""
    root.command("serve")(serve)


def serve(
    context: typer.Context,
    *,
    config: Annotated[Path | None, typer.Option(help="YAML of the `serving` settings; docs/serving.md")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key")] = None,
    new_key: Annotated[str | None, typer.Option(help="make an API key of this name, print it, and end")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="of the new key: read, annotate, admin; repeatable")] = None,
) -> None:
    """Serve annotation, jobs and search over HTTP; Ctrl-C ends it."""
    from mmva_platform.serving.keys import add_key, first_key, keys_file, scopes_of
    from mmva_platform.serving.server import serve_until_stopped
    from mmva_platform.workflows import choose_model, report_annotation

    settings = settings_of(context)
    known = settings.serving.model_dump(mode="json", exclude_unset=True)
    serving = load_config(ServingSettings, config, change or (), known)
    settings = settings.model_copy(update={"serving": serving})
    if new_key is not None:
        emit(add_key(keys_file(settings), new_key, scopes_of(scope or ["read"])), None, as_json=False)
        return
    if "model" not in serving.model_fields_set and not serving.wait_for_model:
        serving = serving.model_copy(update={"model": choose_model(None, settings)})
        settings = settings.model_copy(update={"serving": serving})
    first_key(settings)
    serve_until_stopped(settings, report_annotation)


def application(arguments: dict[str, Any]) -> ray_serve.Application:
    """The application for `serve deploy` and KubeRay; `args` of the YAML are the platform's settings."""
    from mmva_platform.serving.deployments import build
    from mmva_platform.workflows import report_annotation

    return build(validate(Settings, arguments, "serve.yaml: args"), report_annotation)

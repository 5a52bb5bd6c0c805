"""`mmva serve` and `mmva explore`: the HTTP API; and the application that `serve deploy deploy/serve.yaml` imports."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
import yaml

from mmva.errors import UsageError
from mmva.files import sha256_hex
from mmva_platform.cli.context import emit, settings_of
from mmva_platform.settings import KeySettings, Scope, ServingSettings, Settings, load_config, validate

if TYPE_CHECKING:
    from ray import serve as ray_serve


def serve(
    context: typer.Context,
    *,
    config: Annotated[Path | None, typer.Option(help="YAML file of the serving settings")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a key of the serving settings; repeatable"),
    ] = None,
    new_key: Annotated[str | None, typer.Option(help="make an API key of this name, print it, and exit")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="of the new key: read, annotate or admin; repeatable")] = None,
) -> None:
    """Serve annotation, jobs and search over HTTP; Ctrl-C ends it."""
    from mmva_platform.serving.auth import keys_file
    from mmva_platform.workflows import choose_model, report_annotation

    settings = settings_of(context)
    known = settings.serving.model_dump(mode="json", exclude_unset=True)
    serving = load_config(ServingSettings, config, change or (), known)
    settings = settings.model_copy(update={"serving": serving})
    if new_key is not None:
        emit(add_key(keys_file(settings), new_key, scope or ["read"]), None, as_json=False)
        return
    if "model" not in serving.model_fields_set and not serving.wait_for_model:
        serving = serving.model_copy(update={"model": choose_model(None, settings)})
        settings = settings.model_copy(update={"serving": serving})
    key = first_key(settings)
    if key is not None:
        emit(f"a first API key, shown this once: {key}", None, as_json=False)
    from mmva_platform.serving.deploy import serve_until_stopped

    serve_until_stopped(settings, report_annotation)


def explore(
    context: typer.Context,
    out: Annotated[str, typer.Argument(help="a published annotation: a folder or s3://bucket/prefix")],
    *,
    port: Annotated[int, typer.Option(help="port of this machine")] = 8000,
    model: Annotated[str | None, typer.Option(help="model for new items; default: the annotation's own")] = None,
    browser: Annotated[bool, typer.Option(help="open the page; otherwise only print its address")] = True,
) -> None:
    """Serve the page of one annotation and open it in a browser; Ctrl-C ends it."""
    import webbrowser

    from mmva_platform.serving.deploy import serve_until_stopped
    from mmva_platform.workflows import report_annotation

    settings, key = explorer_settings(out, settings_of(context), port=port, model=model)

    def show(address: str) -> None:
        page = f"{address}/#key={key}"  # a browser does not send what follows the #, and the page removes it
        emit(page, None, as_json=False)
        if browser:
            webbrowser.open(page)

    serve_until_stopped(settings, report_annotation, show)


def explorer_settings(out: str, settings: Settings, *, port: int, model: str | None) -> tuple[Settings, str]:
    """Settings of a server for one annotation and its media, and a key for it that may read and annotate.

    Raises UsageError if nothing is published there.
    """
    from mmva_platform.annotation.plan.plan import read_plan
    from mmva_platform.annotation.table.reader import open_annotation
    from mmva_platform.search.models import uri_of

    annotation = open_annotation(out, settings.storage)
    own = annotation.record.model
    key = secrets.token_urlsafe(24)
    digest = sha256_hex(key.encode())
    serving = ServingSettings(
        port=port,
        keys=(KeySettings(name="explore", sha256=digest, scopes=("read", "annotate")),),
        model=model or uri_of(own) or f"models:/{own.name}@champion",
        wait_for_model=model is None,  # the page works without a model; only placing new items needs one
        roots=read_plan(annotation.storage, annotation.version).roots,
        annotations={annotation.uri.rpartition("/")[2]: annotation.uri},
        jobs=str(settings.home.resolve() / "serving" / "explore"),  # its own queue: must not start `mmva serve`'s jobs
    )
    return settings.model_copy(update={"serving": serving}), key


def application(arguments: dict[str, Any]) -> ray_serve.Application:
    """Build the application for `serve deploy` and KubeRay; `args` of the YAML file are the platform's settings."""
    from mmva_platform.serving.deploy import build
    from mmva_platform.workflows import report_annotation

    return build(validate(Settings, arguments, "serve.yaml: args"), report_annotation)


def add_key(file: Path, name: str, scopes: Sequence[str]) -> str:
    """Make a key, add its digest to the file (readable only by its owner) and return the key, which is stored nowhere.

    Raises UsageError if the name is invalid or taken, or the file is not a file of keys.
    """
    from mmva_platform.serving.auth import KeysFile

    known = load_config(KeysFile, file).keys if file.exists() else ()
    if any(key.name == name for key in known):
        raise UsageError(f"{file}: has a key named {name!r} already; remove it or choose another name")
    secret = secrets.token_urlsafe(32)
    digest = sha256_hex(secret.encode())
    new = validate(KeySettings, {"name": name, "sha256": digest, "scopes": scopes}, "new key")
    content = yaml.safe_dump(KeysFile(keys=(*known, new)).model_dump(mode="json"), sort_keys=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:  # noqa: PTH123
        out.write(content)
    temporary.replace(file)
    return secret


def first_key(settings: Settings) -> str | None:
    """If there is no key at all, make one with every scope and return it; see add_key."""
    from mmva_platform.serving.auth import keys_file

    file = keys_file(settings)
    if settings.serving.keys or file.exists():
        return None
    return add_key(file, "first", get_args(Scope))

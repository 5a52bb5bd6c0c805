"""`mmva models ...`: what is registered, and which version is champion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmva_platform.cli.context import Json, emit, settings_of

app = typer.Typer(help="Registered versions: list, show, promote, rollback.", no_args_is_help=True)
Reason = Annotated[str, typer.Option(help="why, for the audit log")]
Policy = Annotated[Path | None, typer.Option(help="YAML of what the gate tolerates; jobs/recipes/policy.yaml")]
Force = Annotated[bool, typer.Option("--force", help="overrule the gate; needs --reason, stays on record for ever")]


@app.command("list")
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """All versions with their aliases."""
    from mmva_platform.tracking.moves import reconcile
    from mmva_platform.tracking.registry import list_versions

    reconcile(settings_of(context))
    versions = list_versions(settings_of(context))
    text = "\n".join(version.to_text() for version in versions) or "no versions yet; mmva train registers one"
    emit(text, [version.to_json() for version in versions], as_json=as_json)


@app.command("show")
def show(context: typer.Context, version: int, *, as_json: Json = False) -> None:
    """One version: digests, lineage, evaluation."""
    from mmva_platform.tracking.moves import reconcile
    from mmva_platform.tracking.registry import show_version

    reconcile(settings_of(context))
    shown = show_version(version, settings_of(context))
    emit(shown.to_text(), shown.to_json(), as_json=as_json)


@app.command("promote")
def promote(
    context: typer.Context,
    version: int,
    *,
    policy: Policy = None,
    reason: Reason = "",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a version champion if the gate lets it; exit code 3 if not."""
    from mmva_platform.settings import load_config
    from mmva_platform.tracking.policy import GatePolicy
    from mmva_platform.tracking.registry import promote as promote_version

    verdict = promote_version(version, settings_of(context), reason, load_config(GatePolicy, policy), force=force)
    emit(verdict.to_text(), verdict.to_json(), as_json=as_json)


@app.command("rollback")
def rollback(context: typer.Context, *, reason: Reason = "", as_json: Json = False) -> None:
    """Make the previous champion champion again; needs no gate, is recorded."""
    from mmva_platform.tracking.registry import rollback as roll_back

    record = roll_back(settings_of(context), reason)
    emit(record.to_text(), record.to_json(), as_json=as_json)

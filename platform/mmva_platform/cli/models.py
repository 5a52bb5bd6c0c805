"""`mmva models ...`: the registered versions, the champion, and the log of its promotions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmva_platform.cli.context import Json, emit, settings_of
from mmva_platform.settings import without_password

if TYPE_CHECKING:
    from mmva_platform.tracking.gate.policy import GatePolicy
    from mmva_platform.tracking.gate.verdict import Verdict

app = typer.Typer(help="Registered versions: list, show, compare, promote, rollback, audit.", no_args_is_help=True)
Version = Annotated[str, typer.Argument(help="a version's number or alias")]
Reason = Annotated[str, typer.Option(help="the reason, for the audit log")]
Policy = Annotated[
    Path | None, typer.Option(help="YAML file with the exam and the gate's limits, such as jobs/recipes/policy.yaml")
]
Force = Annotated[bool, typer.Option("--force", help="overrule the gate; needs --reason and stays on record")]
Report = Annotated[Path | None, typer.Option(help="also write an HTML page with plots to this file")]


@app.command("list")
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """List all versions with their aliases."""
    from mmva_platform.tracking.promotion import reconcile
    from mmva_platform.tracking.registry import list_versions

    settings = settings_of(context)
    reconcile(settings)
    versions = list_versions(settings)
    # The message names the registry, because a wrong --home has an empty one of its own.
    none = f"no versions yet in {without_password(settings.tracking_uri)}; mmva train registers one"
    text = "\n".join(version.to_text() for version in versions) or none
    emit(text, [version.to_json() for version in versions], as_json=as_json)


@app.command("show")
def show(context: typer.Context, version: Version, *, as_json: Json = False) -> None:
    """Show a version's digests, lineage and evaluation."""
    from mmva_platform.tracking.promotion import reconcile
    from mmva_platform.tracking.registry import show_version

    reconcile(settings_of(context))
    shown = show_version(version, settings_of(context))
    emit(shown.to_text(), shown.to_json(), as_json=as_json)


@app.command("promote")
def promote(
    context: typer.Context,
    version: Version,
    *,
    policy: Policy = None,
    reason: Reason = "",
    force: Force = False,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Make a version champion if it passes the gate; exit code 3 if it does not."""
    from mmva_platform.tracking.gate.verdict import GateRefused
    from mmva_platform.tracking.promotion import promote as promote_version

    try:
        verdict = promote_version(version, settings_of(context), reason, _policy(policy), force=force)
    except GateRefused as refusal:
        _emit_verdict(refusal.verdict, report, as_json=as_json)
        raise
    _emit_verdict(verdict, report, as_json=as_json)


@app.command("compare")
def compare(
    context: typer.Context,
    version: Version,
    other: Version,
    *,
    on: Annotated[str | None, typer.Option(help="a catalog: annotate a sample of it with both versions")] = None,
    sample: Annotated[int, typer.Option(min=2, help="how many items of the catalog to draw")] = 200,
    seed: Annotated[int, typer.Option(help="another number draws other items")] = 0,
    policy: Policy = None,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Show the gate's verdict on VERSION if OTHER were champion, or how both differ on media. Changes nothing."""
    if on is not None:
        from mmva_platform.workflows import compare_on_catalog

        shadow = compare_on_catalog(version, other, on, settings_of(context), sample=sample, seed=seed, report=report)
        emit(shadow.to_text(), shadow.to_json(), as_json=as_json)
        return
    from mmva_platform.tracking.promotion import compare as compare_versions

    verdict = compare_versions(version, other, settings_of(context), _policy(policy))
    _emit_verdict(verdict, report, as_json=as_json)


@app.command("challenge")
def challenge(context: typer.Context, version: Version, *, reason: Reason = "", as_json: Json = False) -> None:
    """Give a version the alias challenger. Needs no gate; is recorded."""
    from mmva_platform.tracking.promotion import challenge as name_challenger

    _emit_verdict(name_challenger(version, settings_of(context), reason), None, as_json=as_json)


@app.command("rollback")
def rollback(context: typer.Context, *, reason: Reason = "", as_json: Json = False) -> None:
    """Make the previous champion the champion again. Needs no gate; is recorded."""
    from mmva_platform.tracking.promotion import rollback as roll_back

    _emit_verdict(roll_back(settings_of(context), reason), None, as_json=as_json)


@app.command("audit")
def audit(context: typer.Context, *, as_json: Json = False) -> None:
    """Replay the audit log and compare it with aliases, tags and verdicts; exit code 3 if they differ."""
    from mmva.errors import CheckFailed
    from mmva_platform.tracking.audit import audit as replay

    found = replay(settings_of(context))
    emit(found.to_text(), found.to_json(), as_json=as_json)
    if not found.agrees:
        raise CheckFailed(f"the audit log and the registry differ in {len(found.differences)} places")


def _policy(path: Path | None) -> GatePolicy:
    from mmva_platform.settings import load_config
    from mmva_platform.tracking.gate.policy import GatePolicy

    return load_config(GatePolicy, path)


def _emit_verdict(verdict: Verdict, report: Path | None, *, as_json: bool) -> None:
    from mmva_platform.tracking.gate.page import verdict_page

    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(verdict_page(verdict.to_json()), encoding="utf-8")
    emit(verdict.to_text(), verdict.to_json(), as_json=as_json)

"""`mmva doctor`."""

from typing import Annotated

import typer

from mmva_platform.cli.context import Json, emit, settings_of


def add_verbs(root: typer.Typer) -> None:
    """Put the verbs without a noun on the root command."""
    root.command("doctor")(doctor)


def doctor(
    context: typer.Context,
    *,
    storage: Annotated[
        str | None, typer.Option(help="try a place for outputs, too: a folder or s3://bucket/prefix")
    ] = None,
    address: Annotated[
        str | None, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard, to look at it, too")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what of this machine and its services works, and what to change; exit code 3 if something does not."""
    from mmva.errors import CheckFailed
    from mmva_platform.doctor import examine

    report = examine(settings_of(context), storage, address)
    emit(report.to_text(), report.to_json(), as_json=as_json)
    if report.broken:
        raise CheckFailed(f"doctor: {', '.join(finding.check for finding in report.broken)} will not work; see above")

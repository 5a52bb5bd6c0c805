"""`mmva doctor`."""

from typing import Annotated

import typer

from mmva_platform.cli.context import Json, emit, settings_of


def doctor(
    context: typer.Context,
    *,
    storage: Annotated[str | None, typer.Option(help="also check an output folder or s3://bucket/prefix")] = None,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="also check the cluster with this dashboard address"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine and its services, and print what to change; exit code 3 if a check fails."""
    from mmva.errors import CheckFailed
    from mmva_platform.doctor import examine

    report = examine(settings_of(context), storage, address)
    emit(report.to_text(), report.to_json(), as_json=as_json)
    if report.broken:
        raise CheckFailed(f"doctor: {', '.join(finding.check for finding in report.broken)} will not work; see above")

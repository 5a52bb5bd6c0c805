"""`mmva annotate` and `mmva annotations ...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmva_platform.cli.context import Json, emit, settings_of

app = typer.Typer(help="Runs of mmva annotate: resume, status, verify, report, retry.", no_args_is_help=True)


def add_verbs(root: typer.Typer) -> None:
    """Put the verbs without a noun on the root command."""
    root.command("annotate")(annotate)


def annotate(
    context: typer.Context,
    catalog: Annotated[
        str, typer.Argument(help="a folder, an S3 prefix, a Parquet, CSV or JSONL table, or a folder of them")
    ],
    *,
    model: Annotated[str, typer.Option(help="a bundle's folder, runs:/... or models:/mmva@champion")],
    out: Annotated[str, typer.Option(help="URI of the annotation; the same again resumes")],
    plan: Annotated[bool, typer.Option("--plan", help="say what would be done, and do nothing")] = False,
    engine: Annotated[str, typer.Option(help="auto, torch, torch-bf16, onnx, cuda or cuda-bf16")] = "auto",
    base: Annotated[
        str | None, typer.Option(help="an earlier annotation; what has not changed is taken from it")
    ] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="take the newest annotation beside --out as the base")
    ] = False,
    max_errors: Annotated[
        str | None, typer.Option(help="stop above so many quarantined items: 100, or 5%; default: 20% of 100 or more")
    ] = None,
    root: Annotated[list[str] | None, typer.Option(help="media may be read from here, too; repeatable")] = None,
    windows: Annotated[bool, typer.Option(help="keep windows' embeddings, for curves without media later")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="actors; default: one a CPU")] = None,
    shard_items: Annotated[int | None, typer.Option(min=1, help="most items of a shard; default: a minute")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images, windows or captions embedded at once")] = 16,
    as_json: Json = False,
) -> None:
    """Give every item of a catalog a VA point and an embedding, or a quarantine row that says why not."""
    options = {
        "engine": engine,
        "base": base,
        "incremental": incremental,
        "max_errors": max_errors,
        "roots": tuple(root or ()),
        "keep_windows": windows,
        "workers": workers,
        "shard_items": shard_items,
        "batch_size": batch_size,
        "command": ("mmva", *sys.argv[1:]),
    }
    if plan:
        from mmva_platform.annotation.preview import preview_run

        found = preview_run(catalog, model, out, settings_of(context), **options)
        emit(found.to_text(), found.to_json(), as_json=as_json)
        return
    from mmva_platform.annotation.run import annotate as annotate_catalog

    summary = annotate_catalog(catalog, model, out, settings_of(context), **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("resume")
def resume(
    context: typer.Context,
    out: str,
    *,
    workers: Annotated[int | None, typer.Option(min=1, help="actors; default: one a CPU")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images, windows or captions embedded at once")] = 16,
    max_errors: Annotated[
        str | None, typer.Option(help="stop above so many quarantined items: 100, or 5%; default: 20% of 100 or more")
    ] = None,
    as_json: Json = False,
) -> None:
    """Finish a run that was cut short, from its directory alone; what was added to the catalog since is not listed."""
    from mmva_platform.annotation.run import resume as resume_run

    options = {"workers": workers, "batch_size": batch_size, "max_errors": max_errors}
    summary = resume_run(out, settings_of(context), **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("retry")
def retry(
    context: typer.Context,
    out: str,
    *,
    workers: Annotated[int | None, typer.Option(min=1, help="actors; default: one a CPU")] = None,
    as_json: Json = False,
) -> None:
    """Annotate what is in quarantine, as far as it can be annotated now."""
    from mmva_platform.annotation.retry import retry as retry_run

    summary = retry_run(out, settings_of(context), workers=workers)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("status")
def status(context: typer.Context, out: str, *, as_json: Json = False) -> None:
    """Progress and quarantine of a run, from its directory alone."""
    from mmva_platform.annotation.status import status as status_of

    found = status_of(out, settings_of(context))
    emit(found.to_text(), found.to_json(), as_json=as_json)


@app.command("verify")
def verify(context: typer.Context, out: str, *, as_json: Json = False) -> None:
    """Recompute every digest and count; every item exactly once, or exit code 3."""
    from mmva.errors import CheckFailed
    from mmva_platform.annotation.verify import verify as verify_run

    found = verify_run(out, settings_of(context))
    emit(found.to_text(), found.to_json(), as_json=as_json)
    if not found.ok:
        raise CheckFailed(f"{out}: {len(found.problems)} problems, see above")


@app.command("report")
def report(
    context: typer.Context,
    out: str,
    *,
    file: Annotated[Path, typer.Option(help="HTML file to write")] = Path("report.html"),
) -> None:
    """One self-contained HTML page of a published annotation."""
    from mmva_platform.workflows import report_annotation

    report_annotation(out, file, settings_of(context))
    emit(f"{file.resolve()}", None, as_json=False)

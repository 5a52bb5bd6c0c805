"""`mmva annotate` and `mmva annotations ...`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmva_platform.cli.context import Json, emit, settings_of

MaxErrors = Annotated[
    str | None, typer.Option(help="stop above so many quarantined items: 100, or 5%; default: 20% of 100 or more")
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="count malformed rows of tables and leave them out, instead of failing")
]
Delimiter = Annotated[
    str | None, typer.Option(help=r"of CSV files, such as ; or \t; default: a tab in .tsv, else a comma")
]
Version = Annotated[int | None, typer.Option(min=0, help="of the table; default: the newest")]

app = typer.Typer(
    help="Annotations: resume, update, retry, status, history, verify, report, export, clean.", no_args_is_help=True
)


def add_verbs(root: typer.Typer) -> None:
    """Put the verbs without a noun on the root command."""
    root.command("annotate")(annotate)


def annotate(
    context: typer.Context,
    catalog: Annotated[
        str, typer.Argument(help="a folder, an S3 prefix, a Parquet, CSV or JSONL table, or a folder of them")
    ],
    *,
    out: Annotated[str, typer.Option(help="URI of the annotation; the same again resumes")],
    model: Annotated[
        str | None,
        typer.Option(help="a bundle's folder, runs:/..., models:/... or starter; default: the champion, else starter"),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="say what would be done, and do nothing")] = False,
    lenient: Lenient = False,
    delimiter: Delimiter = None,
    engine: Annotated[str, typer.Option(help="auto, torch, torch-bf16, onnx, cuda or cuda-bf16")] = "auto",
    max_errors: MaxErrors = None,
    root: Annotated[list[str] | None, typer.Option(help="media may be read from here, too; repeatable")] = None,
    windows: Annotated[bool, typer.Option(help="keep windows' embeddings, for curves without media later")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="actors; default: one a CPU")] = None,
    shard_items: Annotated[int | None, typer.Option(min=1, help="most items of a shard; default: a minute")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images, windows or captions embedded at once")] = 16,
    as_json: Json = False,
) -> None:
    """Give every item of a catalog a VA point and an embedding, or a quarantine row that says why not."""
    from mmva_platform.workflows import choose_model

    settings = settings_of(context)
    chosen = choose_model(model, settings)
    options = {
        "tables": {"lenient": lenient, "delimiter": delimiter},
        "engine": engine,
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

        found = preview_run(catalog, chosen, out, settings, **options)
        emit(found.to_text(), found.to_json(), as_json=as_json)
        return
    from mmva_platform.annotation.run import annotate as annotate_catalog

    summary = annotate_catalog(catalog, chosen, out, settings, **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("resume")
def resume(
    context: typer.Context,
    out: str,
    *,
    workers: Annotated[int | None, typer.Option(min=1, help="actors; default: one a CPU")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images, windows or captions embedded at once")] = 16,
    max_errors: MaxErrors = None,
    as_json: Json = False,
) -> None:
    """Finish a version that was cut short, from its directory alone; the catalog is not listed again."""
    from mmva_platform.annotation.run import resume as resume_run

    options = {"workers": workers, "batch_size": batch_size, "max_errors": max_errors}
    summary = resume_run(out, settings_of(context), **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("update")
def update(
    context: typer.Context,
    out: str,
    *,
    catalog: Annotated[str | None, typer.Option(help="the new catalog; default: the same one, listed again")] = None,
    model: Annotated[str | None, typer.Option(help="the new model; default: the one of the last version")] = None,
    lenient: Lenient = False,
    delimiter: Delimiter = None,
    reread: Annotated[
        bool, typer.Option("--reread", help="read media again where the model has another backbone")
    ] = False,
    root: Annotated[list[str] | None, typer.Option(help="media may be read from here, too; repeatable")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="actors; default: one a CPU")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images, windows or captions embedded at once")] = 16,
    max_errors: MaxErrors = None,
    as_json: Json = False,
) -> None:
    """Add a version: new and changed items are annotated, removed ones disappear, all others are kept by reference."""
    from mmva_platform.annotation.update import update as update_annotation

    options = {
        "catalog": catalog,
        "tables": {"lenient": lenient, "delimiter": delimiter} if lenient or delimiter else None,
        "model": model,
        "reread": reread,
        "roots": tuple(root or ()),
        "workers": workers,
        "batch_size": batch_size,
        "max_errors": max_errors,
        "command": ("mmva", *sys.argv[1:]),
    }
    summary = update_annotation(out, settings_of(context), **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("retry")
def retry(
    context: typer.Context,
    out: str,
    *,
    workers: Annotated[int | None, typer.Option(min=1, help="actors; default: one a CPU")] = None,
    as_json: Json = False,
) -> None:
    """Add a version in which what is in quarantine has been tried again."""
    from mmva_platform.annotation.update import retry as retry_annotation

    options = {"workers": workers, "command": ("mmva", *sys.argv[1:])}
    summary = retry_annotation(out, settings_of(context), **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("status")
def status(context: typer.Context, out: str, *, as_json: Json = False) -> None:
    """Progress and quarantine of the version under way, or of the newest one, from its directory alone."""
    from mmva_platform.annotation.status import status as status_of

    found = status_of(out, settings_of(context))
    emit(found.to_text(), found.to_json(), as_json=as_json)


@app.command("history")
def history(context: typer.Context, out: str, *, as_json: Json = False) -> None:
    """What each version was made from, with which model, and what changed."""
    from mmva_platform.annotation.status import history as history_of

    found = history_of(out, settings_of(context))
    emit(found.to_text(), found.to_json(), as_json=as_json)


@app.command("verify")
def verify(context: typer.Context, out: str, *, version: Version = None, as_json: Json = False) -> None:
    """Recompute every digest and count; every item exactly once, or exit code 3."""
    from mmva.errors import CheckFailed
    from mmva_platform.annotation.verify import verify as verify_run

    found = verify_run(out, settings_of(context), version)
    emit(found.to_text(), found.to_json(), as_json=as_json)
    if not found.ok:
        raise CheckFailed(f"{out}: {len(found.problems)} problems, see above")


@app.command("report")
def report(
    context: typer.Context,
    out: str,
    *,
    file: Annotated[Path, typer.Option(help="HTML file to write")] = Path("report.html"),
    version: Version = None,
) -> None:
    """One self-contained HTML page of a version."""
    from mmva_platform.workflows import report_annotation

    report_annotation(out, file, settings_of(context), version)
    emit(f"{file.resolve()}", None, as_json=False)


@app.command("export")
def export(
    context: typer.Context,
    out: str,
    *,
    to: Annotated[str, typer.Option(help="csv, parquet or lance")],
    file: Annotated[Path, typer.Option(help="file to create; a folder for lance")],
    columns: Annotated[str | None, typer.Option(help="comma-separated; default: all that it can hold")] = None,
    modality: Annotated[str | None, typer.Option(help="only items of this one; lance needs it")] = None,
    version: Version = None,
) -> None:
    """Write annotated items into one plain file."""
    from mmva_platform.annotation.export import export as export_annotation

    names = None if columns is None else [name.strip() for name in columns.split(",")]
    settings = settings_of(context)
    rows = export_annotation(out, file, settings, to=to, columns=names, modality=modality, version=version)
    emit(f"{file.resolve()}: {rows} rows", None, as_json=False)


@app.command("clean")
def clean(
    context: typer.Context,
    out: str,
    *,
    keep: Annotated[int, typer.Option(min=1, help="newest versions that stay readable")] = 1,
    delete: Annotated[bool, typer.Option("--delete", help="delete, instead of only showing")] = False,
    as_json: Json = False,
) -> None:
    """Show, or delete, files that none of the newest versions needs."""
    from mmva_platform.annotation.clean import clean as clean_annotation

    found = clean_annotation(out, settings_of(context), keep=keep, delete=delete)
    emit(found.to_text(), found.to_json(), as_json=as_json)


@app.command("convert")
def convert(context: typer.Context, old: str, out: str, *, as_json: Json = False) -> None:
    """Make version 0 of a table from an annotation of an earlier format, which is not changed."""
    from mmva_platform.annotation.convert import convert as convert_annotation

    summary = convert_annotation(old, out, settings_of(context))
    emit(summary.to_text(), summary.to_json(), as_json=as_json)

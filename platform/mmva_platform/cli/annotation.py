"""`mmva annotate` and `mmva annotations ...`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mmva_platform.cli.context import Json, emit, settings_of

MaxErrors = Annotated[
    str | None,
    typer.Option(
        help="stop if more items are quarantined: a number, or a share such as 5%; default: 20% of 100 items or more"
    ),
]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="count malformed rows of tables and leave them out, instead of failing")
]
Delimiter = Annotated[
    str | None, typer.Option(help=r"separator of CSV files, such as ; or \t; default: a tab in .tsv, else a comma")
]
Workers = Annotated[int | None, typer.Option(min=1, help="worker processes; default: one for each CPU")]
BatchSize = Annotated[int, typer.Option(min=1, help="images, windows or captions embedded at once")]
Root = Annotated[list[str] | None, typer.Option(help="another folder or prefix to read media from; repeatable")]
Version = Annotated[int | None, typer.Option(min=0, help="version of the annotation; default: the newest")]
Out = Annotated[str, typer.Argument(help="the annotation: a folder or s3://bucket/prefix")]
Old = Annotated[str, typer.Argument(help="the annotation to convert, with a MANIFEST.json; it is not changed")]

app = typer.Typer(
    help="Annotations: resume, update, retry, restore, status, history, verify, report, export, clean.",
    no_args_is_help=True,
)


def annotate(
    context: typer.Context,
    catalog: Annotated[
        str, typer.Argument(help="a folder, an S3 prefix, a Parquet, CSV or JSONL table or a folder of these")
    ],
    *,
    out: Annotated[str, typer.Option(help="folder or URI of the annotation; the same command again resumes")],
    model: Annotated[
        str | None,
        typer.Option(help="a bundle's folder, runs:/..., models:/... or starter; default: the champion, else starter"),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="print what would be done, and write nothing")] = False,
    lenient: Lenient = False,
    delimiter: Delimiter = None,
    engine: Annotated[str, typer.Option(help="auto, torch, torch-bf16, onnx, cuda or cuda-bf16")] = "auto",
    max_errors: MaxErrors = None,
    root: Root = None,
    windows: Annotated[
        bool, typer.Option(help="keep window embeddings: new models then need no media for curves")
    ] = True,
    workers: Workers = None,
    shard_items: Annotated[int | None, typer.Option(min=1, help="items per shard; default: a minute of work")] = None,
    batch_size: BatchSize = 16,
    as_json: Json = False,
) -> None:
    """Give every item of a catalog a VA point and an embedding, or a quarantine row with the reason."""
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
        from mmva_platform.annotation.run.preview import preview_run

        found = preview_run(catalog, chosen, out, settings, **options)
        emit(found.to_text(), found.to_json(), as_json=as_json)
        return
    from mmva_platform.annotation.run.runner import annotate as annotate_catalog

    summary = annotate_catalog(catalog, chosen, out, settings, **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("resume")
def resume(
    context: typer.Context,
    out: Out,
    *,
    workers: Workers = None,
    batch_size: BatchSize = 16,
    max_errors: MaxErrors = None,
    as_json: Json = False,
) -> None:
    """Finish a version that was interrupted. Needs only the output: the catalog is not read again."""
    from mmva_platform.annotation.run.runner import resume as resume_run

    options = {"workers": workers, "batch_size": batch_size, "max_errors": max_errors}
    summary = resume_run(out, settings_of(context), **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("update")
def update(
    context: typer.Context,
    out: Out,
    *,
    catalog: Annotated[str | None, typer.Option(help="the new catalog; default: the same catalog, read again")] = None,
    model: Annotated[str | None, typer.Option(help="the new model; default: the model of the last version")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="print what would be done, and write nothing")] = False,
    lenient: Lenient = False,
    delimiter: Delimiter = None,
    engine: Annotated[
        str,
        typer.Option(help="as for annotate; auto: the engines of the last version; another engine needs --reread"),
    ] = "auto",
    reread: Annotated[
        bool, typer.Option("--reread", help="read the media again if the backbone or the engine is another one")
    ] = False,
    root: Annotated[
        list[str] | None, typer.Option(help="another folder or prefix that media may be read from; repeatable")
    ] = None,
    workers: Workers = None,
    batch_size: BatchSize = 16,
    max_errors: MaxErrors = None,
    as_json: Json = False,
) -> None:
    """Add a version: new and changed items are annotated, removed ones disappear, all others are kept by reference."""
    from mmva_platform.annotation.run.update import preview_update
    from mmva_platform.annotation.run.update import update as update_annotation

    options = {
        "catalog": catalog,
        "tables": {"lenient": lenient, "delimiter": delimiter} if lenient or delimiter else None,
        "model": model,
        "engine": engine,
        "reread": reread,
        "roots": tuple(root or ()),
        "workers": workers,
        "batch_size": batch_size,
        "max_errors": max_errors,
        "command": ("mmva", *sys.argv[1:]),
    }
    if plan:
        preview = preview_update(out, settings_of(context), **options)
        emit(preview.to_text(), preview.to_json(), as_json=as_json)
        return
    summary = update_annotation(out, settings_of(context), **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("retry")
def retry(
    context: typer.Context,
    out: Out,
    *,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Add a version in which the quarantined items are tried again."""
    from mmva_platform.annotation.run.update import retry as retry_annotation

    options = {"workers": workers, "command": ("mmva", *sys.argv[1:])}
    summary = retry_annotation(out, settings_of(context), **options)
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("restore")
def restore(context: typer.Context, out: Out, *, as_json: Json = False) -> None:
    """Undo what another program committed to the table: add a version with the files of the last one that mmva made."""
    from mmva_platform.annotation.table.restore import restore as restore_annotation

    summary = restore_annotation(out, settings_of(context), ("mmva", *sys.argv[1:]))
    emit(summary.to_text(), summary.to_json(), as_json=as_json)


@app.command("status")
def status(context: typer.Context, out: Out, *, as_json: Json = False) -> None:
    """Show progress and quarantine of the unfinished version, or of the newest one. Needs only the output."""
    from mmva_platform.annotation.table.status import status as status_of

    found = status_of(out, settings_of(context))
    emit(found.to_text(), found.to_json(), as_json=as_json)


@app.command("history")
def history(context: typer.Context, out: Out, *, as_json: Json = False) -> None:
    """Show what each version was made from, with which model, and what changed."""
    from mmva_platform.annotation.table.status import history as history_of

    found = history_of(out, settings_of(context))
    emit(found.to_text(), found.to_json(), as_json=as_json)


@app.command("verify")
def verify(context: typer.Context, out: Out, *, version: Version = None, as_json: Json = False) -> None:
    """Compute every digest and count again. Exit code 3 if an item is missing, repeated or damaged."""
    from mmva.errors import CheckFailed
    from mmva_platform.annotation.table.verify import verify as verify_run

    found = verify_run(out, settings_of(context), version)
    emit(found.to_text(), found.to_json(), as_json=as_json)
    if not found.ok:
        raise CheckFailed(f"{out}: {len(found.problems)} problems, see above")


@app.command("report")
def report(
    context: typer.Context,
    out: Out,
    *,
    file: Annotated[Path, typer.Option(help="HTML file to write")] = Path("report.html"),
    version: Version = None,
) -> None:
    """Write a version's report: one HTML page that needs no other file."""
    from mmva_platform.workflows import report_annotation

    report_annotation(out, file, settings_of(context), version)
    emit(str(file.resolve()), None, as_json=False)


@app.command("export")
def export(
    context: typer.Context,
    out: Out,
    *,
    to: Annotated[str, typer.Option(help="csv, parquet or lance")],
    file: Annotated[Path, typer.Option(help="file to write; for lance a folder")],
    columns: Annotated[str | None, typer.Option(help="names, separated by commas; default: all possible")] = None,
    modality: Annotated[str | None, typer.Option(help="only items of this modality; required for lance")] = None,
    version: Version = None,
) -> None:
    """Write annotated items into one plain file."""
    from mmva_platform.annotation.table.export import export as export_annotation

    names = None if columns is None else [name.strip() for name in columns.split(",")]
    settings = settings_of(context)
    rows = export_annotation(out, file, settings, to=to, columns=names, modality=modality, version=version)
    emit(f"{file.resolve()}: {rows} rows", None, as_json=False)


@app.command("index")
def index(
    context: typer.Context,
    out: Out,
    *,
    modality: Annotated[str | None, typer.Option(help="only this one; default: all with 10,000 items or more")] = None,
    version: Version = None,
) -> None:
    """Build an index of embeddings, for searches by embedding among millions of items; needs the extra `lance`."""
    from mmva_platform.search.vectors import build_vectors

    emit("\n".join(build_vectors(out, settings_of(context), modality, version)), None, as_json=False)


@app.command("clean")
def clean(
    context: typer.Context,
    out: Out,
    *,
    keep: Annotated[int, typer.Option(min=1, help="how many of the newest versions stay readable")] = 1,
    delete: Annotated[bool, typer.Option("--delete", help="delete the files instead of listing them")] = False,
    as_json: Json = False,
) -> None:
    """List the files that the newest versions do not need; delete them with --delete."""
    from mmva_platform.annotation.table.clean import clean as clean_annotation

    found = clean_annotation(out, settings_of(context), keep=keep, delete=delete)
    emit(found.to_text(), found.to_json(), as_json=as_json)


@app.command("convert")
def convert(context: typer.Context, old: Old, out: Out, *, as_json: Json = False) -> None:
    """Make a table from an annotation of an earlier format. The old one is not changed."""
    from mmva_platform.annotation.run.convert import convert as convert_annotation

    summary = convert_annotation(old, out, settings_of(context))
    emit(summary.to_text(), summary.to_json(), as_json=as_json)

"""`mmva data ...` and `mmva embed`: from files to a dataset with embeddings."""

from itertools import repeat
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmva.errors import UsageError
from mmva_platform.cli.context import Json, emit, settings_of

_Engine = Literal["auto", "torch", "cuda"]  # embedder.Engine; importing that module would load torch

app = typer.Typer(help="Generate, import and check labeled media.", no_args_is_help=True)


@app.command("generate")
def generate(
    directory: Annotated[Path, typer.Argument(help="new folder for the files and CSVs")],
    *,
    images: Annotated[int, typer.Option(min=1, help="how many pictures")] = 600,
    clips: Annotated[int, typer.Option(min=1, help="how many clips of music, each with a caption")] = 600,
    seed: Annotated[int, typer.Option(help="another number gives other media")] = 0,
) -> None:
    """Write a small look-alike of IMEMNet-C in the published layout."""
    from mmva_platform.workflows import generate_lookalike

    generate_lookalike(directory, images=images, clips=clips, seed=seed)
    emit(f"{images} images and {clips} clips with captions in {directory}", None, as_json=False)


@app.command("import")
def import_(
    context: typer.Context,
    *,
    source: Annotated[list[Path] | None, typer.Option(help="source file (YAML); repeatable")] = None,
    root: Annotated[
        list[str] | None, typer.Option(help="where the files are, instead of the source file's root; once per --source")
    ] = None,
    images_csv: Annotated[str | None, typer.Option(help="IMEMNet-C without a source file: image_va.csv")] = None,
    music_csv: Annotated[str | None, typer.Option(help="IMEMNet-C without a source file: music_va.csv")] = None,
    media: Annotated[str | None, typer.Option(help="IMEMNet-C without a source file: URI of the media files")] = None,
    split: Annotated[
        str,
        typer.Option(help="IMEMNet-C without a source file: song, clip (which leaks), or a CSV file of song_id,split"),
    ] = "song",
    out: Annotated[str, typer.Option(help="URI of the new dataset")],
    sizes: Annotated[str | None, typer.Option(help="shares of train, val and test, such as 0.7,0.15,0.15")] = None,
    seed: Annotated[int, typer.Option(help="another number gives another split")] = 0,
    as_json: Json = False,
) -> None:
    """Validate labeled media, split them and write an immutable, sharded dataset."""
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource, load_source
    from mmva_platform.settings import validate

    if bool(source) == bool(images_csv or music_csv) or bool(source) == (media is not None):
        raise UsageError("mmva data import: give --source; or --images-csv, --music-csv or both, and --media")
    if root and len(root) != len(source or ()):
        raise UsageError(f"mmva data import: {len(root)} --root for {len(source or ())} --source; give one for each")
    sources = [load_source(path, place) for path, place in zip(source or (), root or repeat(None), strict=False)]
    if media is not None:
        sources = [ImemnetSource(images_csv=images_csv, music_csv=music_csv, media=media, split=split)]
    values = {"sources": sources, "seed": seed, "fractions": sizes.split(",") if sizes else None}
    report = import_dataset(validate(ImportConfig, values, "mmva data import"), out, settings_of(context))
    emit(report.to_text(), report.to_json(), as_json=as_json)


@app.command("check")
def check(
    context: typer.Context,
    uri: Annotated[str, typer.Argument(help="the dataset: a folder or URI")],
    *,
    as_json: Json = False,
) -> None:
    """Compute a dataset's digests, counts and rules again from its bytes."""
    from mmva.errors import CheckFailed
    from mmva_platform.datasets.checking import check_dataset

    report = check_dataset(uri, settings_of(context))
    emit(report.to_text(), report.to_json(), as_json=as_json)
    if not report.ok:
        raise CheckFailed(f"{uri}: {len(report.problems)} problems, see above")


def embed(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="the dataset: a folder or URI")],
    *,
    backbones: Annotated[
        str, typer.Option(help="compact, compact-layers, paper or tiny; or a model with these backbones: models:/...")
    ] = "compact",
    out: Annotated[str | None, typer.Option(help="where to write the embeddings; default: inside the dataset")] = None,
    engine: Annotated[_Engine, typer.Option(help="torch, cuda, or auto: cuda if the cluster has GPUs")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="images, windows or captions embedded together")] = 16,
    as_json: Json = False,
) -> None:
    """Compute the embeddings of a dataset with each backbone. Existing ones are not computed again."""
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.workflows import backbones_of

    settings = settings_of(context)
    chosen = backbones_of(backbones, settings)
    made = embed_dataset(dataset, chosen, out, settings, batch_size=batch_size, engine=engine)
    emit("\n".join(f"{modality:8} {uri}" for modality, uri in made.items()), dict(made), as_json=as_json)

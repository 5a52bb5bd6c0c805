"""`mmva search`, `mmva music-prompt` and `mmva summarize`: uses of an annotation and a model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mmva_platform.cli.context import Json, emit, settings_of

Model = Annotated[
    str | None,
    typer.Option(help="a bundle's folder, runs:/..., models:/... or starter; default: the champion, else starter"),
]


def search(
    context: typer.Context,
    annotations: Annotated[str, typer.Argument(help="URI of a published annotation")],
    *,
    text: Annotated[str | None, typer.Option(help="a sentence to search by")] = None,
    image: Annotated[Path | None, typer.Option(help="a picture to search by")] = None,
    music: Annotated[Path | None, typer.Option(help="a piece of music to search by")] = None,
    like: Annotated[str | None, typer.Option(metavar="ID", help="an annotated item to search by")] = None,
    by: Annotated[
        Literal["va", "embedding"],
        typer.Option(help="with --like: va (distance in the plane) or embedding (cosine within a modality)"),
    ] = "va",
    modality: Annotated[str | None, typer.Option(help="only image, music, caption or video items")] = None,
    top: Annotated[int, typer.Option(min=1, help="how many to find")] = 10,
    offset: Annotated[int, typer.Option(min=0, help="skip this many of the nearest items")] = 0,
    valence: Annotated[tuple[float, float], typer.Option(help="only items between these two values")] = (0.0, 1.0),
    arousal: Annotated[tuple[float, float], typer.Option(help="only items between these two values")] = (0.0, 1.0),
    version: Annotated[int | None, typer.Option(min=0, help="version of the annotation; default: the newest")] = None,
    model: Annotated[str | None, typer.Option(help="where the annotation's model is, if not in the registry")] = None,
    as_json: Json = False,
) -> None:
    """Find the items of an annotation that are nearest to a sentence, a picture, a piece of music or an item."""
    from mmva_platform.search.flow import search_by_item

    found = search_by_item(
        annotations,
        {"caption": text, "image": image, "music": music, "like": like},
        settings_of(context),
        version=version,
        by=by,
        modality=modality,
        top=top,
        offset=offset,
        valence=valence,
        arousal=arousal,
        model=model,
    )
    emit(found.to_text(), found.to_json(), as_json=as_json)


def music_prompt(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="a picture")],
    *,
    model: Model = None,
    generate: Annotated[Path | None, typer.Option(help="write the music itself to this .wav, by --musicgen")] = None,
    musicgen: Annotated[str | None, typer.Option(help="MusicGen: a folder, or a hub's NAME or NAME@REVISION")] = None,
    seconds: Annotated[float, typer.Option(help="length of the music, at most 30")] = 10.0,
    as_json: Json = False,
) -> None:
    """Write a prompt for a text-to-music generator: music that fits a picture."""
    from mmva_platform.search.flow import prompt_for_image
    from mmva_platform.workflows import choose_model

    settings = settings_of(context)
    chosen = choose_model(model, settings)
    prompt = prompt_for_image(image, chosen, settings, generate=generate, musicgen=musicgen, seconds=seconds)
    emit(prompt.text, prompt.to_json(), as_json=as_json)


def summarize(
    context: typer.Context,
    video: Annotated[Path, typer.Argument(help="mp4, mov, mkv, webm or avi")],
    *,
    seconds: Annotated[float, typer.Option(help="how long the summary may be")] = 15.0,
    model: Model = None,
    out: Annotated[Path | None, typer.Option(help=".webm or .mp4 to write, and the curve as .png")] = None,
    prompts: Annotated[bool, typer.Option("--prompts", help="suggest a musical prompt for each segment")] = False,
    music_from: Annotated[str | None, typer.Option(help="suggest music of this annotation for each segment")] = None,
    version: Annotated[int | None, typer.Option(min=0, help="version of that annotation; default: the newest")] = None,
    as_json: Json = False,
) -> None:
    """Find the moments of a video in which its mood changes, and cut them into a clip."""
    from mmva_platform.search.flow import summarize_video
    from mmva_platform.workflows import choose_model

    settings = settings_of(context)
    summary = summarize_video(
        video,
        choose_model(model, settings),
        settings,
        seconds=seconds,
        out=out,
        prompts=prompts,
        music_from=music_from,
        version=version,
    )
    emit(summary.to_text(), summary.to_json(), as_json=as_json)

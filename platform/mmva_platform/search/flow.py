"""`mmva search`, `mmva music-prompt` and `mmva summarize`: from files and names to printable results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.affect import mood
from mmva.errors import MediaError, UsageError
from mmva.media.limits import Limits
from mmva.models.predictor import Predictor
from mmva.zeroshot.prompts import MusicPrompt, PromptBank, music_prompt
from mmva.zeroshot.query import query_point
from mmva.zeroshot.search import Region
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.search.index import AnnotationIndex, By, Hit
from mmva_platform.search.models import check_same_model, load_predictor, open_query_model
from mmva_platform.settings import Settings

if TYPE_CHECKING:
    from mmva.zeroshot.video import VideoSummary

Suggest = Callable[[ArrayLike], str | None]


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    modality: str  # of the query
    va: tuple[float, float]  # of the query
    hits: list[Hit]  # the nearest items; by embedding, the most similar
    items: int  # number of items in the annotation
    model: ModelInfo  # of query and items

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "query": {"modality": self.modality, "valence": self.va[0], "arousal": self.va[1]},
            "hits": [hit.to_json() for hit in self.hits],
            "items": self.items,
            "model": self.model.model_dump(),
        }

    def to_text(self) -> str:
        """One line for the query and one for each hit."""
        word = str(mood(self.va))
        lines = [f"{self.modality} at valence {self.va[0]:.2f}, arousal {self.va[1]:.2f} ({word}); {self.items} items"]
        lines += [
            f"{number:>3}  {hit.score:.3f}  {hit.modality:<7}  {hit.valence:.2f} {hit.arousal:.2f}  {hit.mood:<10}  "
            f"{hit.uri or hit.id}"
            for number, hit in enumerate(self.hits, 1)
        ]
        return "\n".join(lines if self.hits else [*lines, "no items pass the filters"])


def search_by_item(
    annotations: str,
    query: Mapping[str, str | Path | None],
    settings: Settings,
    *,
    version: int | None = None,
    model: str | None = None,
    by: By = "va",
    valence: tuple[float, float] = (0, 1),
    arousal: tuple[float, float] = (0, 1),
    modality: str | None = None,
    top: int = 10,
    offset: int = 0,
) -> Found:
    """Search a published annotation by one item.

    `query` has one of "caption" (a text), "image", "music" (local files) and "like" (an annotated item's id). `model`
    is the place of the annotation's model (see open_query_model); a query by id needs none. `by`: see
    AnnotationIndex.like. `valence`, `arousal` and `modality` filter the hits.

    Raises UsageError if there is not exactly one query, or it or a filter is not usable, CheckFailed if the model is
    not the annotation's or a file was changed.
    """
    given = {kind: item for kind, item in query.items() if item is not None}
    if len(given) != 1:
        raise UsageError(f"search by exactly one of --text, --image, --music and --like; {len(given)} are given")
    ((kind, item),) = given.items()
    region = Region(valence, arousal)
    if kind == "like":
        index = AnnotationIndex.open(annotations, settings, version)
        hits = index.like(str(item), by=by, top=top, offset=offset, modality=modality, region=region)
        own = index.item(str(item))
        assert own is not None
        return Found(own.modality, (own.valence, own.arousal), hits, len(index), index.model)
    if by != "va":
        raise UsageError(f"--by {by}: needs an annotated item, named with --like ID")
    data = read_item(item) if isinstance(item, Path) else item
    index = AnnotationIndex.open(annotations, settings, version)
    va_2 = usable_point(open_query_model(index, settings, model), kind, data, str(item))
    hits = index.search(va_2, top=top, offset=offset, modality=modality, region=region)
    return Found(kind, (float(va_2[0]), float(va_2[1])), hits, len(index), index.model)


def prompt_for_image(
    image: Path,
    model: str,
    settings: Settings,
    *,
    generate: Path | None = None,
    musicgen: str | None = None,
    seconds: float = 10.0,
) -> MusicPrompt:
    """A musical prompt for a picture; with `generate` (a .wav file to write) and `musicgen`, also its sound.

    `model`: see load_predictor. `musicgen`: see MusicGenerator.load. Raises UsageError if the picture is not usable,
    the generator is missing, or only one of the two options is given, CheckFailed and OperationFailed as
    load_predictor.
    """
    from mmva.zeroshot.generation import MusicGenerator, check_wav, write_wav

    if (generate is None) != (musicgen is None):
        raise UsageError("--generate (the file) and --musicgen (the model): give both")
    generator = None
    if generate is not None and musicgen is not None:
        check_wav(generate)
        generator = MusicGenerator.load(musicgen)
    data = read_item(image)
    predictor = load_predictor(model, settings)
    prompt = music_prompt(predictor, usable_point(predictor, "image", data, str(image)))
    if generator is not None and generate is not None:
        write_wav(generate, generator.generate(prompt.text, seconds), generator.sample_rate)
    return prompt


def summarize_video(
    video: Path,
    model: str,
    settings: Settings,
    *,
    seconds: float,
    out: Path | None,
    prompts: bool = False,
    music_from: str | None = None,
    version: int | None = None,
) -> VideoSummary:
    """Summarise a local video; see mmva.zeroshot.video.summarize.

    `seconds` is the longest duration of the summary, `out` the clip to write, with a picture next to it. For each
    segment, `prompts` suggests a musical prompt, `music_from` (an annotation made with this model) the nearest music.

    Raises UsageError if the video or an option is not usable, CheckFailed if the annotation has another model.
    """
    from mmva.zeroshot.video import summarize

    if prompts and music_from is not None:
        raise UsageError("give --prompts or --music-from, not both")
    if version is not None and music_from is None:
        raise UsageError("--version needs --music-from: it is the version of that annotation")
    predictor = load_predictor(model, settings)
    suggest: Suggest | None = None
    if prompts:
        suggest = partial(_prompt_text, PromptBank.place(predictor))
    elif music_from is not None:
        suggest = _nearest_music(AnnotationIndex.open(music_from, settings, version), predictor, model)
    try:
        return summarize(video, predictor, seconds=seconds, out=out, suggest=suggest)
    except MediaError as error:
        raise UsageError(f"{video}: {error.code}: {error}") from None


def _prompt_text(bank: PromptBank, va_2: ArrayLike) -> str:
    return bank.prompt(va_2).text


def _nearest_music(index: AnnotationIndex, predictor: Predictor, model: str) -> Suggest:
    check_same_model(index, predictor, model)

    def suggest(va_2: ArrayLike) -> str | None:
        hits = index.search(va_2, top=1, modality="music")
        return f"{hits[0].uri} ({hits[0].mood}, S = {hits[0].score:.2f})" if hits else None

    return suggest


def usable_point(model: Predictor, kind: str, data: bytes | str, name: str) -> NDArray[np.float64]:
    """As query_point, but raises UsageError, naming the item, if it is not usable."""
    try:
        return query_point(model, kind, data)
    except MediaError as error:
        raise UsageError(f"{name}: {error.code}: {error}") from None


def read_item(path: Path) -> bytes:
    """Bytes of a user's local file. Raises UsageError if it cannot be read or is too large."""
    most = Limits().max_bytes
    try:
        if path.is_file() and path.stat().st_size > most:
            raise UsageError(f"{path}: {path.stat().st_size:,} bytes, over the limit of {most:,}")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None

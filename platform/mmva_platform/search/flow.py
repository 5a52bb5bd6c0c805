"""`mmva search`: an item's point, and what lies about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmva.affect import mood
from mmva.errors import MediaError, UsageError
from mmva.media.limits import Limits
from mmva.zeroshot.query import query_point
from mmva.zeroshot.search import Region
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.search.index import AnnotationIndex, Hit
from mmva_platform.search.models import open_query_model
from mmva_platform.settings import Settings


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        modality: The query's.
        va: The query's point.
        hits: The nearest items.
        items: How many items the annotation holds.
        model: What placed query and items.
    """

    modality: str
    va: tuple[float, float]
    hits: list[Hit]
    items: int
    model: ModelInfo

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "query": {"modality": self.modality, "valence": self.va[0], "arousal": self.va[1]},
            "hits": [hit.to_json() for hit in self.hits],
            "items": self.items,
            "model": self.model.model_dump(),
        }

    def to_text(self) -> str:
        """One line of the query and one of each hit."""
        word = str(mood(self.va))
        lines = [f"{self.modality} at valence {self.va[0]:.2f}, arousal {self.va[1]:.2f} ({word}); {self.items} items"]
        lines += [
            f"{number:>3}  {hit.score:.3f}  {hit.modality:<7}  {hit.valence:.2f} {hit.arousal:.2f}  {hit.mood:<10}  "
            f"{hit.uri or hit.id}"
            for number, hit in enumerate(self.hits, 1)
        ]
        return "\n".join(lines if self.hits else [*lines, "nothing passes the filters"])


def search_by_item(
    annotations: str,
    query: Mapping[str, str | Path | None],
    settings: Settings,
    *,
    model: str | None = None,
    valence: tuple[float, float] = (0, 1),
    arousal: tuple[float, float] = (0, 1),
    modality: str | None = None,
    top: int = 10,
    offset: int = 0,
) -> Found:
    """Search a published annotation by one item.

    Args:
        annotations: Its URI.
        query: One of "caption" (a text), "image" and "music" (local files).
        settings: Storage, MLflow, backbones.
        model: Where the annotation's model is; see open_query_model.
        valence: Bounds of what is found.
        arousal: Likewise.
        modality: Of what is found; any if None.
        top: How many at most.
        offset: How many of the nearest to leave out before.

    Raises:
        UsageError: For anything but one query, an unreadable or unusable one, or a wrong filter.
        CheckFailed: If the model is not the annotation's, or a file of either is not what was published.
    """
    given = {kind: item for kind, item in query.items() if item is not None}
    if len(given) != 1:
        raise UsageError(f"search by one of --text, --image and --music; {len(given)} are given")
    ((kind, item),) = given.items()
    region = Region(valence, arousal)
    data = read_item(item) if isinstance(item, Path) else item
    index = AnnotationIndex.open(annotations, settings)
    va_2 = usable_point(open_query_model(index, settings, model), kind, data, str(item))
    hits = index.search(va_2, top=top, offset=offset, modality=modality, region=region)
    return Found(kind, (float(va_2[0]), float(va_2[1])), hits, len(index), index.model)


def usable_point(model: Any, kind: str, data: bytes | str, name: str) -> Any:
    """query_point, with what is wrong with the item as a UsageError that names it."""
    try:
        return query_point(model, kind, data)
    except MediaError as error:
        raise UsageError(f"{name}: {error.code}: {error}") from None


def read_item(path: Path, most: int = Limits().max_bytes) -> bytes:
    """Bytes of a local file that a user names.

    Raises:
        UsageError: If it cannot be read, or holds more than `most` bytes.
    """
    try:
        if path.is_file() and path.stat().st_size > most:
            raise UsageError(f"{path}: {path.stat().st_size:,} bytes, over the limit of {most:,}")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None

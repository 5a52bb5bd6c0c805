"""Items during embedding, and their tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.errors import MediaError
from mmva.inference.decode import Decoder
from mmva.inference.tables import EMBEDDING_SCHEMA, ERROR_SCHEMA, WINDOW_SCHEMA, table_of

_MESSAGE_CHARACTERS: Final = 500


@dataclass(slots=True)
class Track:
    """An item's windows for one tower; images and captions have one window."""

    starts_s: list[float] = field(default_factory=list)
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)

    def mean(self) -> NDArray[np.float32]:
        """The track's embedding [D]: the mean over its windows."""
        if len(self.embeddings) == 1:
            return np.asarray(self.embeddings[0], np.float32)
        return np.stack(self.embeddings).mean(axis=0, dtype=np.float64).astype(np.float32)


@dataclass(slots=True)
class Media:
    """The embeddings of an item's bytes, shared by all items with the same bytes.

    `tracks` maps a tower to its windows, in the order of the stored embeddings. `complete`: everything is decoded.
    """

    tracks: dict[str, Track] = field(default_factory=dict)
    duration_s: float | None = None
    error: MediaError | None = None
    complete: bool = False

    @property
    def size(self) -> int:
        """Bytes of the embeddings."""
        return sum(emb_D.nbytes for track in self.tracks.values() for emb_D in track.embeddings)

    @property
    def is_long(self) -> bool:
        """Whether it has a curve."""
        return any(len(track.starts_s) > 1 for track in self.tracks.values())


@dataclass(slots=True)
class Item:
    """An item that becomes a row or an error."""

    id: str
    uri: str | None
    modality: str | None
    caption: str | None = None
    size: int | None = None
    sha256: str | None = None
    error: MediaError | None = None
    media: Media | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Equal for items of one modality with the same bytes."""
        return str(self.modality), str(self.sha256)

    @property
    def cause(self) -> MediaError | None:
        """Why there is no embedding."""
        return self.error or (self.media.error if self.media else None)


def items_of(table: pa.Table) -> list[Item]:
    """The items of a table with the columns id, uri, modality, and optionally caption and bytes."""
    count = table.num_rows
    columns = [
        table[name].to_pylist() if name in table.column_names else [None] * count
        for name in ("id", "uri", "modality", "caption", "bytes")
    ]
    return [Item(*row) for row in zip(*columns, strict=True)]


def refusal(decoder: Decoder, item: Item) -> MediaError | None:
    """Why an item cannot be embedded, as far as known without fetching it."""
    error = decoder.refusal(item.modality)
    if error is None and item.caption is None and item.uri is None:
        return MediaError("no-media", "the row has neither a uri nor a caption's text", stage="catalog")
    return error


def embedding_table(items: Sequence[Item]) -> pa.Table:
    """Embedded items as a table (EMBEDDING_SCHEMA)."""
    media = [item.media for item in items if item.media is not None]
    columns = {
        **_names(items),
        "embedding": [np.concatenate([track.mean() for track in one.tracks.values()]) for one in media],
        "tracks": [
            list(one.tracks) if item.modality == "video" else None for item, one in zip(items, media, strict=True)
        ],
        "duration_s": [one.duration_s for one in media],
    }
    return table_of(columns, EMBEDDING_SCHEMA)


def window_table(items: Sequence[Item]) -> pa.Table:
    """Window embeddings of the embedded items with more than one window (WINDOW_SCHEMA)."""
    found: list[tuple[str, str, float, NDArray[np.float32]]] = [
        (item.id, name, start_s, emb_D)
        for item in items
        if item.media is not None and item.media.is_long
        for name, track in item.media.tracks.items()
        for start_s, emb_D in zip(track.starts_s, track.embeddings, strict=True)
    ]
    if not found:
        return WINDOW_SCHEMA.empty_table()
    ids, tracks, starts_s, embeddings = zip(*found, strict=True)
    columns = {"id": ids, "track": tracks, "start_s": starts_s, "embedding": embeddings}
    return table_of(columns, WINDOW_SCHEMA)


def error_table(items: Sequence[Item]) -> pa.Table:
    """Items with an error (ERROR_SCHEMA)."""
    causes = [item.cause for item in items]
    columns = {
        **_names(items),
        "stage": [cause.stage for cause in causes if cause],
        "error": [cause.code for cause in causes if cause],
        "message": [one_line(str(cause)) for cause in causes],
    }
    return table_of(columns, ERROR_SCHEMA)


def one_line(message: str) -> str:
    """A library's message as one line of limited length in valid Unicode."""
    text = " ".join(message.split())[:_MESSAGE_CHARACTERS]
    return text.encode(errors="replace").decode()


def _names(items: Sequence[Item]) -> dict[str, list[Any]]:
    return {name: [getattr(item, name) for item in items] for name in ("id", "uri", "modality", "sha256")}

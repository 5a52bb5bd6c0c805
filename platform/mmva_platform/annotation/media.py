"""Reads media below the allowed roots; of an annotated item, only if its bytes have not changed since."""

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from mmva.errors import MediaError
from mmva.files import sha256_hex
from mmva.media.captions import clean_caption
from mmva.media.formats import AUDIO_FORMATS, VIDEO_FORMATS, sniff
from mmva.media.images.decode import decode_image
from mmva.media.limits import Limits
from mmva_platform.annotation.catalog.roots import AllowedRoots
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import (
    Storage,
    StorageNotFound,
    StorageTooLargeError,
    StorageUnavailable,
    open_storage,
    place_of,
)

THUMBNAIL_SIDES: Final = (96, 960)
_AUDIO_TYPES: Final = {
    "wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg", "mp4": "audio/mp4",
    "aac": "audio/aac", "aiff": "audio/aiff", "asf": "audio/x-ms-wma", "matroska": "audio/webm",
}  # fmt: skip
_VIDEO_TYPES: Final = {
    "mp4": "video/mp4", "matroska": "video/webm", "avi": "video/x-msvideo", "mpeg": "video/mpeg",
    "mpegts": "video/mp2t",
}  # fmt: skip
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True)
class Piece:
    """Part of a file: its bytes, where it begins, and the file's size."""

    data: bytes
    start: int
    size: int


class Fetcher:
    """Reads media by URI."""

    def __init__(self, settings: StorageSettings, roots: AllowedRoots | Iterable[str] | None = None) -> None:
        """A URI outside the `roots` is not opened; None allows every URI."""
        self._roots = roots if roots is None or isinstance(roots, AllowedRoots) else AllowedRoots(roots)
        self._open = lru_cache(maxsize=64)(lambda root: open_storage(root, settings))

    def __call__(self, uri: str, size: int | None, most: int) -> bytes:
        """Bytes of a file; `size` is its size if it is known, `most` the largest size to read.

        Raises MediaError "outside-roots", or "too-many-bytes" by the known size, before the file is opened, and
        "too-many-bytes" by its real size; UsageError or StorageError if it cannot be read.
        """
        if self._roots is not None:
            self._roots.check(uri)
        root, path = place_of(uri)
        if size is not None and size > most:
            raise MediaError("too-many-bytes", f"{uri}: {size} bytes, the limit is {most}", stage="fetch")
        storage: Storage = self._open(root)
        try:
            return storage.read(path, most)  # the size in a table may be wrong
        except StorageTooLargeError as error:
            raise MediaError("too-many-bytes", str(error), stage="fetch") from error


def is_outage(error: Exception) -> bool:
    """Whether a fetch failed because storage is unavailable."""
    return isinstance(error, StorageUnavailable)


class MediaReader:
    """Reads media of annotated items that are below a root and have not changed since."""

    def __init__(
        self, roots: AllowedRoots, settings: StorageSettings | None = None, limits: Limits | None = None
    ) -> None:
        self._fetch, self._limits = Fetcher(settings or StorageSettings(), roots), limits or Limits()

    def read(self, item: Mapping[str, Any]) -> bytes:
        """Bytes of an item (the columns uri and sha256 of ANNOTATION_SCHEMA).

        Raises MediaError "outside-roots", "not-found", "too-many-bytes", or "changed" if these are not the annotated
        bytes; StorageError if storage does not answer. The methods below raise the same errors.
        """
        if item["uri"] is None:
            raise MediaError("not-found", "this item has no file", stage="fetch")
        try:
            data = self._fetch(item["uri"], None, self._limits.max_bytes)
        except StorageNotFound:
            raise MediaError("not-found", "the file no longer exists", stage="fetch") from None
        if sha256_hex(data) != item["sha256"]:
            raise MediaError("changed", "the file has changed since it was annotated", stage="fetch")
        return data

    def thumbnail(self, item: Mapping[str, Any], side: int) -> bytes:
        """A picture as JPEG, its longer side at most `side` pixels; not the file itself. Raises as decode_image."""
        image = decode_image(self.read(item), self._limits, at_least=side)
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=82, optimize=True)
        return buffer.getvalue()

    def sound(self, item: Mapping[str, Any]) -> tuple[str, bytes]:
        """Content type and bytes of a piece of music or a video; the type follows from the bytes, not from the name.

        Raises MediaError "not-audio" or "not-video" for bytes of another kind.
        """
        data = self.read(item)
        kind = sniff(data)
        if item["modality"] == "video" and kind in VIDEO_FORMATS:
            return _VIDEO_TYPES[kind], data
        if item["modality"] == "music" and kind in AUDIO_FORMATS:
            return _AUDIO_TYPES[kind], data
        raise MediaError("not-video" if item["modality"] == "video" else "not-audio", f"{kind or 'unrecognised'} data")

    def text(self, item: Mapping[str, Any]) -> str:
        """A caption's text, from its file. Raises as clean_caption."""
        return clean_caption(self.read(item), self._limits)


def piece_of(data: bytes, asked: str | None) -> Piece | None:
    """The piece of a file that a Range header asks for (RFC 9110, one range); the whole file for no or another header.

    None if the range begins after the file's end (416).
    """
    size = len(data)
    match = _RANGE.fullmatch(asked.strip()) if asked else None
    if match is None or match.groups() == ("", ""):
        return Piece(data, 0, size)
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):  # not a valid range, so it is ignored
            return Piece(data, 0, size)
    else:
        start, stop = max(0, size - int(last)), size
    return Piece(data[start:stop], start, size) if start < stop else None

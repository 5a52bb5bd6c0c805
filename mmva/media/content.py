"""Detect the modality of bytes, without a name: a picture, music, or a video.

In containers for both music and videos, the tracks decide. They are read in plain Python here: native decoders may only
read bytes from the network in a process that may die.
"""

from typing import Final

from mmva.media.boxes import boxes
from mmva.media.formats import AUDIO_FORMATS, IMAGE_FORMATS, VIDEO_FORMATS, sniff, sound_start
from mmva.modalities import MediaKind

# Matroska's elements (RFC 9559) that lead to a track's type, and the type of video.
_SEGMENT, _TRACKS, _ENTRY, _TYPE = 0x18538067, 0x1654AE6B, 0xAE, 0x83
_MOVING: Final = 1
_MOST_ELEMENTS: Final = 10_000
# Bytes that mark a file with sound and video in formats whose videos are not supported.
_PICTURED: Final = {"asf": bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b"), "ogg": b"\x80theora"}
_HEADER_BYTES: Final = 2**16


def modality_of_content(data: bytes) -> MediaKind | None:
    """The modality of the bytes; None for text and for unknown formats."""
    kind = sniff(data)
    if kind in IMAGE_FORMATS or kind == "jpegxl":
        return "image"
    if kind == "mp4":
        return "video" if _has_pictures_mp4(data, sound_start(data)) else "music"
    if kind == "matroska":
        return "video" if _has_pictures_matroska(data, sound_start(data)) else "music"
    if kind in AUDIO_FORMATS:
        pictured = _PICTURED.get(kind)
        return "video" if pictured is not None and pictured in data[:_HEADER_BYTES] else "music"
    return "video" if kind in VIDEO_FORMATS else None


def _has_pictures_mp4(data: bytes, start: int) -> bool:
    """Whether a track has the video handler."""
    level = [(start, len(data))]
    for wanted, most in ((b"moov", 4), (b"trak", 64), (b"mdia", 64), (b"hdlr", 64)):
        found = [place for outer in level for place in _inside(data, *outer, wanted)]
        level = found[:most]
    return any(data[body + 8 : body + 12] == b"vide" for body, _ in level)


def _inside(data: bytes, start: int, end: int, wanted: bytes) -> list[tuple[int, int]]:
    return [(body, stop) for name, body, stop in boxes(data, start, end) if name == wanted]


def _has_pictures_matroska(data: bytes, start: int) -> bool:
    """Whether a track before the first cluster has the video type."""
    level = [(start, len(data))]
    for wanted in (_SEGMENT, _TRACKS, _ENTRY):
        level = [found for place in level for found in _elements(data, *place, wanted)]
    types = [found for place in level for found in _elements(data, *place, _TYPE)]
    return any(int.from_bytes(data[body : min(stop, body + 8)], "big") == _MOVING for body, stop in types)


def _elements(data: bytes, position: int, end: int, wanted: int) -> list[tuple[int, int]]:
    """Start and end of the bodies of the wanted elements within `position` to `end`."""
    found: list[tuple[int, int]] = []
    for _ in range(_MOST_ELEMENTS):
        if position >= end:
            break
        name, _, after = _number(data, position)
        _, size, body = _number(data, after)
        is_unknown = size == (1 << 7 * (body - after)) - 1  # all bits are set in live recordings
        stop = end if is_unknown else min(end, body + size)
        if name == wanted:
            found.append((body, stop))
            if wanted in {_SEGMENT, _TRACKS}:
                break
        position = stop
    return found


def _number(data: bytes, position: int) -> tuple[int, int, int]:
    """A number of variable width, with and without its marker, and its end; after a width above 8, the data's end."""
    width = 9 - data[position].bit_length() if position < len(data) else 9
    if width > 8 or position + width > len(data):
        return 0, 0, len(data)
    marked = int.from_bytes(data[position : position + width], "big")
    return marked, marked & ~(1 << 7 * width), position + width

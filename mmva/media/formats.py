"""The modality that a name stands for, and the format of the bytes."""

from __future__ import annotations

from typing import Final

from mmva.modalities import MediaKind

EXTENSIONS: Final[dict[MediaKind, tuple[str, ...]]] = {
    "image": ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    "music": ("wav", "flac", "mp3", "ogg", "opus", "m4a", "aac", "aif", "aiff", "wma"),
    "caption": ("txt",),
    "video": ("mp4", "m4v", "mkv", "webm", "mov", "avi", "mpg", "mpeg", "ts"),
}
IMAGE_FORMATS: Final = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
AUDIO_FORMATS: Final = ("wav", "flac", "mp3", "ogg", "mp4", "aac", "aiff", "asf")
VIDEO_FORMATS: Final = ("mp4", "matroska", "avi", "mpeg", "mpegts")

_MODALITY_BY_EXTENSION = {extension: modality for modality, names in EXTENSIONS.items() for extension in names}
_PREFIXES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"BM", "bmp"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"\0\0\1\xba", "mpeg"),
)
_RIFF_KINDS = {b"WAVE": "wav", b"WEBP": "webp", b"AVI ": "avi"}
# Files of chunks: the first four bytes, then the size, then the kind.
_CHUNKED = {b"RIFF": _RIFF_KINDS, b"RF64": _RIFF_KINDS, b"FORM": {b"AIFF": "aiff", b"AIFC": "aiff"}}
# First boxes of QuickTime files from before `ftyp` was written.
_QUICKTIME_BOXES = frozenset({b"moov", b"mdat", b"wide"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_STILL_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"})
# Start of the first packet and bytes from packet to packet: broadcast, and recorders that add a time stamp.
_TS_PACKETS = ((0, 188), (4, 192))


def modality_of(uri: str) -> MediaKind | None:
    """Modality (or "video") that the extension of a path or URI stands for, in any case; None for every other name."""
    name = uri.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, extension = name.rpartition(".")
    return _MODALITY_BY_EXTENSION.get(extension.lower()) if stem and dot else None


def sniff(data: bytes) -> str | None:
    """Format by the first bytes, never by the name: one of the formats above, "heif", or None.

    "ogg" covers Vorbis, Opus and FLAC in Ogg; "mp4" is m4a, mp4 and mov; "matroska" is mkv and webm; "asf" is wma and
    wmv; "mpeg" is an MPEG program stream and "mpegts" a transport stream. "heif" (HEIC) is recognized so that it is not
    taken for mp4, but cannot be decoded: the decoders for it are GPL.
    """
    for prefix, name in _PREFIXES:
        if data.startswith(prefix):
            return name
    if data.startswith(b"ID3"):
        return _sniff_behind_tags(data)
    if data[:4] in _CHUNKED:
        return _CHUNKED[data[:4]].get(data[8:12])
    if data[4:8] == b"ftyp":
        return _sniff_brands(data)
    if data[4:8] in _QUICKTIME_BOXES:
        return "mp4"
    return _sniff_mpeg_frame(data) or _sniff_transport_stream(data)


def id3_bytes(data: bytes) -> int:
    """Length in bytes of the ID3v2 tags that a file begins with, which may be more than the data; 0 without a tag."""
    position = 0
    while data[position : position + 3] == b"ID3" and position + 10 <= len(data):
        flags, size = data[position + 5], data[position + 6 : position + 10]
        footer = 10 if flags & 0x10 else 0
        position += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3]) + footer
    return position


def _sniff_behind_tags(data: bytes) -> str:
    """Tags are for MP3, but writers of AAC streams and of FLAC put them in front too."""
    start = id3_bytes(data)
    head = data[start : start + 4]
    return "flac" if head == b"fLaC" else _sniff_mpeg_frame(head) or "mp3"


def _sniff_brands(data: bytes) -> str:
    """AVIF, HEIF or MP4 by the brands of the box `ftyp`: the main one, then those that the file is compatible with."""
    end = min(int.from_bytes(data[:4], "big"), len(data))
    brands = {data[8:12], *(data[i : i + 4] for i in range(16, end - 3, 4))}
    if brands & _AVIF_BRANDS:
        return "avif"
    return "heif" if data[8:12] in _STILL_BRANDS else "mp4"


def _sniff_mpeg_frame(data: bytes) -> str | None:
    """MP3 or ADTS AAC by a plausible frame header: eleven sync bits, then fields that must not be reserved."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version, layer = data[1] >> 3 & 0b11, data[1] >> 1 & 0b11
    if data[1] & 0xF6 == 0xF0:
        return "aac" if data[2] >> 2 & 0b1111 < 13 else None
    plausible = version != 0b01 and layer != 0b00 and data[2] >> 4 != 0b1111 and data[2] >> 2 & 0b11 != 0b11
    return "mp3" if plausible else None


def _sniff_transport_stream(data: bytes) -> str | None:
    """MPEG-TS by the first bytes of its first three packets."""
    found = any(data[first : first + 2 * size + 1 : size] == b"GGG" for first, size in _TS_PACKETS)
    return "mpegts" if found else None

"""Which modality a name promises, and which format the bytes really are."""

from __future__ import annotations

from typing import Final

from mmva.modalities import MediaKind

EXTENSIONS: Final[dict[MediaKind, tuple[str, ...]]] = {
    "image": ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"),
    "music": ("wav", "flac", "mp3", "ogg", "opus", "m4a", "aac"),
    "caption": ("txt",),
    "video": ("mp4", "mkv", "webm", "mov", "avi"),
}
IMAGE_FORMATS: Final = ("jpeg", "png", "webp", "gif", "bmp", "tiff")
AUDIO_FORMATS: Final = ("wav", "flac", "mp3", "ogg", "mp4", "aac")
VIDEO_FORMATS: Final = ("mp4", "matroska", "avi")

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
    (b"ID3", "mp3"),
    (b"\x1a\x45\xdf\xa3", "matroska"),
)
_RIFF_KINDS = {b"WAVE": "wav", b"WEBP": "webp", b"AVI ": "avi"}
# First boxes of QuickTime files from before `ftyp` was written.
_QUICKTIME_BOXES = frozenset({b"moov", b"mdat", b"wide"})
_STILL_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis"})


def modality_of(uri: str) -> MediaKind | None:
    """Modality (or "video") that the extension of a path or URI stands for, in any case; None for every other name."""
    name = uri.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, extension = name.rpartition(".")
    return _MODALITY_BY_EXTENSION.get(extension.lower()) if stem and dot else None


def sniff(data: bytes) -> str | None:
    """Format by the first bytes, never by the name: one of the formats above, "heif", or None.

    "ogg" covers Vorbis, Opus and FLAC in Ogg; "mp4" is m4a, mp4 and mov; "matroska" is mkv and webm; "heif" covers
    AVIF, which is recognised only so that it is not taken for mp4.
    """
    for prefix, name in _PREFIXES:
        if data.startswith(prefix):
            return name
    if data[:4] in {b"RIFF", b"RF64"}:
        return _RIFF_KINDS.get(data[8:12])
    if data[4:8] == b"ftyp":
        return "heif" if data[8:12] in _STILL_BRANDS else "mp4"
    if data[4:8] in _QUICKTIME_BOXES:
        return "mp4"
    return _sniff_mpeg_frame(data)


def _sniff_mpeg_frame(data: bytes) -> str | None:
    """MP3 or ADTS AAC by a plausible frame header: eleven sync bits, then fields that must not be reserved."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version, layer = data[1] >> 3 & 0b11, data[1] >> 1 & 0b11
    if data[1] & 0xF6 == 0xF0:
        return "aac" if data[2] >> 2 & 0b1111 < 13 else None
    plausible = version != 0b01 and layer != 0b00 and data[2] >> 4 != 0b1111 and data[2] >> 2 & 0b11 != 0b11
    return "mp3" if plausible else None

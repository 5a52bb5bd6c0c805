"""Find the modality by a file's extension, and the format by its bytes."""

from typing import Final

from mmva.media.tags import first_frame, mpeg_frame, tag_bytes, zero_bytes
from mmva.modalities import MediaKind

EXTENSIONS: Final[dict[MediaKind, tuple[str, ...]]] = {
    "image": (
        "jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff",
        "avif", "heic", "heif", "hif", "jxl",
    ),
    "music": (
        "wav", "wave", "bwf", "rf64", "flac", "mp3", "ogg", "oga", "opus", "m4a", "m4b", "m4r", "aac",
        "aif", "aiff", "aifc", "wma", "mka", "weba",
    ),
    "caption": ("txt",),
    "video": (
        "mp4", "m4v", "mkv", "webm", "mov", "qt", "avi", "mpg", "mpeg", "mpe", "ts", "mts", "m2ts", "3gp", "3g2",
    ),
}  # fmt: skip
IMAGE_FORMATS: Final = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heif")
AUDIO_FORMATS: Final = ("wav", "flac", "mp3", "ogg", "mp4", "aac", "aiff", "asf", "matroska")
VIDEO_FORMATS: Final = ("mp4", "matroska", "avi", "mpeg", "mpegts")

_MODALITY_BY_EXTENSION = {extension: modality for modality, names in EXTENSIONS.items() for extension in names}
_PREFIXES = (
    (b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif"), (b"BM", "bmp"),
    (b"II*\0", "tiff"), (b"MM\0*", "tiff"), (b"\xff\x0a", "jpegxl"), (b"\0\0\0\x0cJXL \r\n\x87\n", "jpegxl"),
    (b"fLaC", "flac"), (b"OggS", "ogg"), (b"\x1a\x45\xdf\xa3", "matroska"), (b"\0\0\1\xba", "mpeg"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
)  # fmt: skip
_RIFF_KINDS = {b"WAVE": "wav", b"WEBP": "webp", b"AVI ": "avi"}
# Files of chunks: four bytes, the size, then the kind.
_WAVE = {b"WAVE": "wav"}
_CHUNKED = {
    b"RIFF": _RIFF_KINDS,
    b"RIFX": _WAVE,  # big-endian
    b"RF64": _WAVE,  # with sizes of 64 bits, like BW64
    b"BW64": _WAVE,
    b"FORM": {b"AIFF": "aiff", b"AIFC": "aiff"},
}
# First boxes of old QuickTime files, which have no `ftyp`.
_QUICKTIME_BOXES = frozenset({b"moov", b"mdat", b"wide"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_STILL_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"})
# Start of the first packet and bytes per packet, for broadcasts and for recorders that add a time stamp.
_TS_PACKETS = ((0, 188), (4, 192))
# Enough for the first packets or brands.
_HEAD_BYTES = 4096
# Recognized by a frame's header; more frames must follow.
_FRAMED = frozenset({"mp3", "aac"})
# Formats that may follow zeros, because they do not begin with zeros.
_PADDED = frozenset({"wav", "flac", "ogg", "aiff"})


def modality_of(uri: str) -> MediaKind | None:
    """Modality (or "video") by the extension of a path or URI, in any case; None for unknown extensions."""
    name = uri.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, extension = name.rpartition(".")
    return _MODALITY_BY_EXTENSION.get(extension.lower()) if stem and dot else None


def sniff(data: bytes) -> str | None:
    """Format by the first bytes: one of the formats above, "jpegxl", or None.

    "ogg" is Vorbis, Opus and FLAC in Ogg; "mp4" is m4a, mp4 and mov; "matroska" is mkv and webm; "asf" is wma and wmv;
    "mpeg" is an MPEG program stream and "mpegts" a transport stream; "wav" is RIFF, RIFX, RF64 and BW64. Finds sound
    after tags, zeros and the rest of a frame (see sound_start). "jpegxl" is recognized but not supported.
    """
    return _sniff_sound_inside(data)[0]


def sound_start(data: bytes) -> int:
    """Start of the sound after tags, zeros and junk; 0 without these."""
    return _sniff_sound_inside(data)[1]


def _sniff_sound_inside(data: bytes) -> tuple[str | None, int]:
    """The format, and its start."""
    tags = tag_bytes(data)
    tagged = tags > 0 or data.startswith(b"ID3")
    kind = _sniff_at(data, tags)
    if kind not in {None, *_FRAMED} and (kind in AUDIO_FORMATS or not tagged):
        return kind, tags
    found = _sniff_behind_junk(data, tags if tags < len(data) else 0)
    if found[0] is not None:
        return found
    if kind in _FRAMED:
        return kind, tags
    return ("mp3", 0) if tagged else (None, 0)  # tags mean MP3; FFmpeg searches further for frames


def _sniff_behind_junk(data: bytes, start: int) -> tuple[str | None, int]:
    """Format and start of sound after zeros, or of a row of frames after any bytes."""
    padded = start + zero_bytes(data, start)
    kind = _sniff_at(data, padded)
    if padded > start and kind in _PADDED:
        return kind, padded
    frame = first_frame(data, padded)
    if frame is None:
        return None, 0
    found = mpeg_frame(data[frame : frame + 6])
    assert found is not None
    return found[0], frame


def _sniff_at(data: bytes, start: int) -> str | None:
    head = data[start : start + _HEAD_BYTES]
    for prefix, name in _PREFIXES:
        if head.startswith(prefix):
            return name
    if head[:4] in _CHUNKED:
        return _CHUNKED[head[:4]].get(head[8:12])
    if head[4:8] == b"ftyp":
        return _sniff_brands(head)
    if head[4:8] in _QUICKTIME_BOXES:
        return "mp4"
    frame = mpeg_frame(head[:6])
    return frame[0] if frame is not None else _sniff_transport_stream(head)


def _sniff_brands(data: bytes) -> str:
    """AVIF, HEIF or MP4 by the brands of the box `ftyp`: the main brand, then the compatible ones."""
    end = min(int.from_bytes(data[:4], "big"), len(data))
    brands = {data[8:12], *(data[i : i + 4] for i in range(16, end - 3, 4))}
    if brands & _AVIF_BRANDS:
        return "avif"
    return "heif" if data[8:12] in _STILL_BRANDS else "mp4"


def _sniff_transport_stream(data: bytes) -> str | None:
    """MPEG-TS by the first bytes of the first three packets."""
    found = any(data[first : first + 2 * size + 1 : size] == b"GGG" for first, size in _TS_PACKETS)
    return "mpegts" if found else None

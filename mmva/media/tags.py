"""Bytes before sound: tags (ID3v2, APE), zeros, and the rest of a cut stream."""

import re
from typing import Final

# Recorders and download tools leave a few hundred bytes before the first frame, rarely more than this.
_MOST_JUNK: Final = 2**16
# A header of 32 bits often occurs by chance, but not three in a row.
_CHAIN: Final = 3
_SYNC: Final = re.compile(rb"\xff[\xe2-\xff]", re.DOTALL)
_NOT_ZERO: Final = re.compile(rb"[^\0]", re.DOTALL)
_ID3_HEADER, _APE_HEADER = 10, 32
# kbit/s by (MPEG version 1?, layer); the index is the header's field minus one.
_BIT_RATES: Final = {
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES: Final = (44_100, 48_000, 32_000)
_DIVISORS: Final = {0b11: 1, 0b10: 2, 0b00: 4}  # of these, by the version's bits
_XING_BYTES: Final = 64


def tag_bytes(data: bytes) -> int:
    """Length of the tags at the start of a file, which may exceed the data; 0 without tags."""
    position = 0
    while (length := _id3_bytes(data, position) or _ape_bytes(data, position)) > 0:
        position += length
    return position


def zero_bytes(data: bytes, start: int) -> int:
    """Number of zeros from `start` on."""
    found = _NOT_ZERO.search(data, start)
    return (len(data) if found is None else found.start()) - start


def first_frame(data: bytes, start: int) -> int | None:
    """Start of a row of complete MP3 or ADTS frames within 64 KiB from `start`; None if not found."""
    for match in _SYNC.finditer(data, start, min(len(data), start + _MOST_JUNK)):
        if _is_chain(data, match.start()):
            return match.start()
    return None


def mpeg_frame(header: bytes) -> tuple[str, int] | None:
    """Format, "mp3" or "aac", and length in bytes of the frame with this header; None for other bytes.

    The length is 0 if the header does not have it (free format), and for an AAC header of less than 6 bytes.
    """
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    return _adts_frame(header) if header[1] & 0xF6 == 0xF0 else _layer_frame(header)


def xing_seconds(data: bytes) -> float | None:
    """Duration of an MP3 by its Xing tag, the first frame of files with variable bit rate; None without the tag."""
    at = max(data.find(b"Xing", 0, _XING_BYTES), data.find(b"Info", 0, _XING_BYTES))
    if at < 0 or _layer_frame(data[:4]) is None or len(data) < at + 12 or not data[at + 7] & 1:
        return None
    version, rate = data[1] >> 3 & 0b11, data[2] >> 2 & 0b11
    samples = 1152 if version == 0b11 else 576
    return int.from_bytes(data[at + 8 : at + 12], "big") * samples / (_RATES[rate] // _DIVISORS[version])


def _adts_frame(header: bytes) -> tuple[str, int] | None:
    if header[2] >> 2 & 0b1111 >= 13:
        return None
    return "aac", (header[3] & 0b11) << 11 | header[4] << 3 | header[5] >> 5 if len(header) >= 6 else 0


def _layer_frame(header: bytes) -> tuple[str, int] | None:
    version, layer = header[1] >> 3 & 0b11, 4 - (header[1] >> 1 & 0b11)
    bit_rate, rate = header[2] >> 4, header[2] >> 2 & 0b11
    if version == 0b01 or layer == 4 or bit_rate == 0b1111 or rate == 0b11:
        return None
    if bit_rate == 0:
        return "mp3", 0
    first = version == 0b11
    bits_s = _BIT_RATES[first, layer][bit_rate - 1] * 1000
    hz = _RATES[rate] // _DIVISORS[version]
    padding = header[2] >> 1 & 1
    if layer == 1:
        return "mp3", (12 * bits_s // hz + padding) * 4
    return "mp3", (144 if first or layer == 2 else 72) * bits_s // hz + padding


def _is_chain(data: bytes, position: int) -> bool:
    kind = None
    for _ in range(_CHAIN):
        frame = mpeg_frame(data[position : position + 6])
        if frame is None or frame[1] < 7 or (kind is not None and frame[0] != kind):
            return False
        kind, position = frame[0], position + frame[1]
    return True


def _id3_bytes(data: bytes, position: int) -> int:
    if data[position : position + 3] != b"ID3" or position + _ID3_HEADER > len(data):
        return 0
    flags, size = data[position + 5], data[position + 6 : position + _ID3_HEADER]
    footer = _ID3_HEADER if flags & 0x10 else 0
    return _ID3_HEADER + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3]) + footer


def _ape_bytes(data: bytes, position: int) -> int:
    """Length of a leading APEv2 tag; the size in the header includes the footer."""
    header = data[position : position + _APE_HEADER]
    if header[:8] != b"APETAGEX" or len(header) < _APE_HEADER:
        return 0
    return _APE_HEADER + int.from_bytes(header[12:16], "little")

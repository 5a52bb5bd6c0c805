"""PNG without the chunks that a picture does not need: text, thumbnails, private notes, and damaged ones.

Pillow refuses a text of over 1 MB and a wrong checksum in any chunk. Browsers show such pictures, because only the
chunks of pixels matter.
"""

from __future__ import annotations

import zlib
from typing import Final

_SIGNATURE_BYTES: Final = 8
# Chunks that change the picture, besides the critical ones (a capital first letter); APNG's separate the frames.
_SEEN: Final = frozenset({b"tRNS", b"iCCP", b"gAMA", b"sRGB", b"cHRM", b"cICP", b"eXIf", b"acTL", b"fcTL", b"fdAT"})


def needed_chunks(data: bytes) -> bytes:
    """The same picture without the other chunks, and without damaged ones that are not critical."""
    kept: list[tuple[int, int]] = []
    position = _SIGNATURE_BYTES
    while position + 12 <= len(data):
        name = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        critical = name[0] & 0x20 == 0
        if critical or end > len(data) or (name in _SEEN and _is_whole(data, position, end)):
            kept.append((position, end))
        position = end
        if name == b"IEND":
            break
    if sum(end - start for start, end in kept) + _SIGNATURE_BYTES >= position:
        return data
    whole = memoryview(data)
    return b"".join([whole[:_SIGNATURE_BYTES], *(whole[start:end] for start, end in kept)])


def _is_whole(data: bytes, position: int, end: int) -> bool:
    content = memoryview(data)[position + 4 : end - 4]
    return zlib.crc32(content) == int.from_bytes(data[end - 4 : end], "big")

"""Accept truncated pictures that still contain their pixels.

Decoders refuse a truncated file, even if only the end marker is missing. To find missing pixels, the file is decoded
with two different paddings: pixels that depend on the padding are not in the file.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Formats that store pixels in order, and their end markers.
_END_MARKERS: Final = {"jpeg": b"\xff\xd9", "gif": b"\0;", "bmp": b"", "tiff": b""}
# Smallest share of pixels that must be present, as for sound.
_WHOLE_SHARE: Final = 0.98
_BLOCK: Final = 16
_PROGRESSIVE: Final = b"\xff\xc2"


def decode_padded(data: bytes, kind: str, decode: Callable[[bytes], Image.Image]) -> Image.Image | None:
    """The picture of a truncated file; None if more than 2 % of its pixels are missing.

    `decode` decodes a file, and raises Pillow's errors.
    """
    marker = _END_MARKERS.get(kind)
    if marker is None or (kind == "jpeg" and not _holds_every_scan(data)):
        return None
    held = data.rstrip(b"\xff") if kind == "jpeg" else data
    pictures = [decode(held + filling + marker) for filling in _fillings(kind, len(data) // 32 + 64)]
    first_HWC, second_HWC = (np.atleast_3d(np.asarray(picture)) for picture in pictures)
    changed_HW = (first_HWC != second_HWC).any(axis=2)
    missing = _behind_first(changed_HW) if kind == "jpeg" else float(changed_HW.mean())
    return pictures[0] if missing <= 1 - _WHOLE_SHARE else None


def _fillings(kind: str, size: int) -> tuple[bytes, bytes]:
    """Two paddings that decode differently; for JPEG, one has the restart markers that decoders expect."""
    other = b"\x5a" * size
    restarts = b"".join(bytes([0xFF, 0xD0 + number]) + b"\x5a" * 64 for number in range(8))
    return bytes(size), other + restarts if kind == "jpeg" else other


def _behind_first(changed_HW: NDArray[np.bool_]) -> float:
    """Share of the pixels after the first changed one; JPEG stores blocks of 16 rows from left to right."""
    rows = np.flatnonzero(changed_HW.any(axis=1))
    if len(rows) == 0:
        return 0.0
    height, width = changed_HW.shape
    band = changed_HW[rows[0] : rows[0] + _BLOCK]
    right = width - int(np.flatnonzero(band.any(axis=0))[0])
    return float(right * len(band) + width * max(0, height - rows[0] - _BLOCK)) / changed_HW.size


def _holds_every_scan(data: bytes) -> bool:
    """Whether a progressive JPEG begins the last scan of each coefficient; True for other JPEGs."""
    if _PROGRESSIVE not in data:
        return True
    refined: dict[int, NDArray[np.bool_]] = {}
    position = data.find(b"\xff\xda")
    while 0 <= position < len(data) - 5:
        components = data[position + 4]
        names = data[position + 5 : position + 5 + 2 * components : 2]
        last = data[position + 5 + 2 * components : position + 8 + 2 * components]
        for name in names if len(last) == 3 else b"":
            done_64 = refined.setdefault(name, np.zeros(64, np.bool_))
            if last[2] & 0x0F == 0:
                done_64[last[0] : last[1] + 1] = True
        position = data.find(b"\xff\xda", position + 2)
    return bool(refined) and all(done_64.all() for done_64 in refined.values())

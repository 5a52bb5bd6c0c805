"""The boxes of an HEIF file (ISO/IEC 23008-12): its items, their types, positions and properties."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from mmva.errors import MediaError

_FILE, _ITEM_DATA = 0, 1  # an item's positions count from the file's start, or are in the box idat
_MOST_ITEMS: Final = 4096
_MOST_BOXES: Final = 20_000


@dataclass(slots=True)
class HeifFile:
    """The items of a file."""

    data: bytes
    primary: int = -1  # the number of the main picture
    kinds: dict[int, bytes] = field(default_factory=dict)  # types by item
    # By item: _FILE or _ITEM_DATA, and starts and lengths.
    places: dict[int, tuple[int, list[tuple[int, int]]]] = field(default_factory=dict)
    boxes: list[tuple[bytes, bytes]] = field(default_factory=list)  # names and bodies of all properties
    associated: dict[int, list[int]] = field(default_factory=dict)  # numbers of an item's properties, from 1
    derived_from: dict[int, list[int]] = field(default_factory=dict)  # tiles by grid
    item_data: bytes = b""  # the box idat

    def kind(self, item: int) -> bytes:
        """An item's type, such as b"hvc1" or b"grid"."""
        if item not in self.kinds:
            raise MediaError("corrupt-image", f"heif data without the item {item}")
        return self.kinds[item]

    def properties(self, item: int) -> list[tuple[bytes, bytes]]:
        """Names and bodies of an item's properties, in order of application."""
        return [self.boxes[index - 1] for index in self.associated.get(item, []) if 0 < index <= len(self.boxes)]

    def tiles(self, item: int) -> list[int]:
        """The tiles of a grid; for other items, the item itself."""
        return self.derived_from.get(item) or [item]

    def content(self, item: int) -> bytes:
        """An item's bytes. Raises MediaError "corrupt-image" if some are missing."""
        method, extents = self.places.get(item, (-1, []))
        source = {_FILE: self.data, _ITEM_DATA: self.item_data}.get(method)
        if source is None or not extents:
            raise MediaError("corrupt-image", f"heif data without the bytes of item {item}")
        if sum(length or len(source) - start for start, length in extents) > len(source):
            raise MediaError("corrupt-image", f"heif data whose item {item} is larger than the file")
        parts = [source[start : start + length] if length else source[start:] for start, length in extents]
        if any(len(part) < length for part, (_, length) in zip(parts, extents, strict=True)):
            raise MediaError("corrupt-image", "heif data that ends too early")
        return b"".join(parts)


def read_heif(data: bytes) -> HeifFile:
    """Read the box `meta`. Raises MediaError, struct.error or IndexError if it is damaged."""
    file = HeifFile(data)
    for name, start, end in boxes(data, 0, len(data)):
        if name == b"meta":
            _read_meta(file, start + 4, end)
            break
    if file.primary < 0:
        raise MediaError("corrupt-image", "heif data without a main picture")
    return file


def boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, and start and end of the body, of at most 20,000 successive boxes in a part of an ISO file."""
    for _ in range(_MOST_BOXES):
        if position + 8 > end:
            return
        size, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        body = position + 8
        if size == 1:
            size, body = int.from_bytes(data[body : body + 8], "big"), body + 8
        stop = end if size == 0 else min(end, position + size)
        if stop < body:
            return
        yield name, body, stop
        position = stop


def _read_meta(file: HeifFile, start: int, end: int) -> None:
    data = file.data
    found = {name: (body, stop) for name, body, stop in boxes(data, start, end)}
    if b"pitm" in found:
        body, _ = found[b"pitm"]
        file.primary = int.from_bytes(data[body + 4 : body + (6 if data[body] == 0 else 8)], "big")
    if b"idat" in found:
        file.item_data = data[slice(*found[b"idat"])]
    if b"iinf" in found:
        file.kinds = dict(_kinds(data, *found[b"iinf"]))
    if b"iloc" in found:
        file.places = dict(_places(data[slice(*found[b"iloc"])]))
    if b"iref" in found:
        file.derived_from = dict(_derivations(data, *found[b"iref"]))
    for name, body, stop in boxes(data, *found.get(b"iprp", (0, 0))):
        if name == b"ipco":
            file.boxes = [(kind, data[at:until]) for kind, at, until in boxes(data, body, stop)]
        elif name == b"ipma":
            file.associated |= dict(_associations(data[body:stop]))


def _kinds(data: bytes, body: int, stop: int) -> Iterator[tuple[int, bytes]]:
    first = body + (6 if data[body] == 0 else 8)
    for name, at, _ in boxes(data, first, stop):
        if name == b"infe" and data[at] >= 2:
            width = 2 if data[at] == 2 else 4
            yield int.from_bytes(data[at + 4 : at + 4 + width], "big"), data[at + 6 + width : at + 10 + width]


def _derivations(data: bytes, body: int, stop: int) -> Iterator[tuple[int, list[int]]]:
    code = "H" if data[body] == 0 else "I"
    for name, at, until in boxes(data, body + 4, stop):
        if name == b"dimg":
            item, count = struct.unpack_from(f">{code}H", data[at:until])
            yield item, list(struct.unpack_from(f">{count}{code}", data[at:until], struct.calcsize(f">{code}H")))


class _Reader:
    """Reads successive big-endian numbers. Raises struct.error at the end."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position

    def number(self, size: int) -> int:
        self._position += size
        if self._position > len(self._data):
            raise struct.error("the box is too short")
        return int.from_bytes(self._data[self._position - size : self._position], "big")


def _places(box: bytes) -> Iterator[tuple[int, tuple[int, list[tuple[int, int]]]]]:
    version = box[0]
    offset_size, length_size, base_size = box[4] >> 4, box[4] & 15, box[5] >> 4
    index_size = box[5] & 15 if version else 0
    reader = _Reader(box, 6)
    wide = 2 if version < 2 else 4
    for _ in range(min(reader.number(wide), _MOST_ITEMS)):
        item = reader.number(wide)
        method = reader.number(2) & 15 if version else _FILE
        reader.number(2)  # skip the reference to the data's file, which is always this one
        base = reader.number(base_size)
        extents = []
        for _extent in range(reader.number(2)):
            reader.number(index_size)
            start = base + reader.number(offset_size)
            extents.append((start, reader.number(length_size)))
        yield item, (method, extents)


def _associations(box: bytes) -> Iterator[tuple[int, list[int]]]:
    version, flags = box[0], box[3]
    reader = _Reader(box, 4)
    width = 2 if flags & 1 else 1
    mask = (1 << (8 * width - 1)) - 1  # the highest bit says "essential"
    for _ in range(min(reader.number(4), _MOST_ITEMS)):
        item = reader.number(2 if version == 0 else 4)
        yield item, [reader.number(width) & mask for _ in range(reader.number(1))]

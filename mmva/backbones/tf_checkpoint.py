"""Read a TensorFlow 2 checkpoint (`.index` and `.data-00000-of-00001`) without TensorFlow.

The index is a LevelDB-style sorted table: blocks of prefix-compressed keys, found through an index block whose position
is in the 48-byte footer. Each value is a BundleEntryProto with dtype, shape, offset and size in the data file.
Formats: tensorflow/core/lib/io/table_format, tensorflow/core/protobuf/tensor_bundle.proto.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmva.errors import UsageError

_MAGIC: Final = 0xDB4775248B80FB57
_FOOTER: Final = 48
_UNCOMPRESSED: Final = 0
_FLOAT32: Final = 1
# Field numbers of BundleEntryProto, TensorShapeProto and its Dim.
_DTYPE, _SHAPE, _OFFSET, _SIZE, _DIM, _DIM_SIZE = 1, 2, 4, 5, 2, 1
# Wire types of protocol buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_checkpoint(folder: Path) -> dict[str, NDArray[np.float32]]:
    """All float32 variables of the checkpoint in a folder, by name.

    Raises UsageError if a file is missing or is not a TensorFlow checkpoint.
    """
    try:
        index = (folder / ".index").read_bytes()
        data = (folder / ".data-00000-of-00001").read_bytes()
        return dict(_variables(index, data))
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read ({error.strerror})") from None
    except (ValueError, IndexError, struct.error) as error:
        raise UsageError(f"{folder}: not a TensorFlow checkpoint ({error})") from error


def _variables(index: bytes, data: bytes) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for key, value in _table(index):
        # The empty key holds the header.
        entry = _message(value) if key else {}
        if entry.get(_DTYPE) != [_FLOAT32]:
            continue
        dims = _message(_bytes(entry[_SHAPE][0])).get(_DIM, []) if _SHAPE in entry else []
        shape = [int(_message(_bytes(dim)).get(_DIM_SIZE, [0])[0]) for dim in dims]
        offset, size = int(entry.get(_OFFSET, [0])[0]), int(entry.get(_SIZE, [0])[0])
        yield key.decode(), np.frombuffer(data[offset : offset + size], "<f4").reshape(shape).astype(np.float32)


def _table(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    footer = index[-_FOOTER:]
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("wrong magic number")
    position = 0
    for _ in range(2):  # skip the handle of the meta index
        _, position = _varint(footer, position)
    offset, position = _varint(footer, position)
    size, _ = _varint(footer, position)
    for _, handle in _block(index, offset, size):
        block_offset, position = _varint(handle, 0)
        block_size, _ = _varint(handle, position)
        yield from _block(index, block_offset, block_size)


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if table[offset + size] != _UNCOMPRESSED:
        raise ValueError(f"block compression {table[offset + size]}")
    block = table[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end = len(block) - 4 - 4 * restarts
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _message(buffer: bytes) -> dict[int, list[int | bytes]]:
    """Fields of a protocol buffer message by number, undecoded."""
    fields: dict[int, list[int | bytes]] = {}
    position = 0
    while position < len(buffer):
        tag, position = _varint(buffer, position)
        value: int | bytes
        if tag & 7 == _VARINT:
            value, position = _varint(buffer, position)
        elif tag & 7 == _BYTES:
            length, position = _varint(buffer, position)
            value, position = buffer[position : position + length], position + length
        elif tag & 7 in {_FIXED32, _FIXED64}:
            width = 4 if tag & 7 == _FIXED32 else 8
            value, position = int.from_bytes(buffer[position : position + width], "little"), position + width
        else:
            raise ValueError(f"wire type {tag & 7}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")  # noqa: TRY004 - malformed input, not a wrong argument
    return value


def _varint(buffer: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = buffer[position]
        position += 1
        result |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return result, position

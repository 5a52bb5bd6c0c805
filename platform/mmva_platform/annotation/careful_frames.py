"""Messages from careful mode's child to its parent, over a pipe of their own.

The child's stdout may be written to by any native library and cannot corrupt them. A frame is a letter, eight bytes of
length, and a payload: R the child is ready; B begins an item (its number); S a step of it (load, fetch, decode, infer);
O its result; A storage is away.
"""

from __future__ import annotations

import io
import json
import os
import select
import time
from typing import BinaryIO, Final, NamedTuple

import pyarrow as pa

from mmva_platform.annotation.commit import ShardResult

TABLES: Final = ("ok", "quarantined", "windows")
_HEADER_BYTES: Final = 9


class Frame(NamedTuple):
    """A message of the child."""

    kind: str
    payload: bytes


class ChildLostError(Exception):
    """The child died or did not say anything for too long; `hung` tells which."""

    def __init__(self, *, hung: bool) -> None:
        super().__init__("timed out" if hung else "died")
        self.hung = hung


def send(pipe: BinaryIO, kind: str, payload: bytes = b"") -> None:
    """Write a frame."""
    pipe.write(kind.encode() + len(payload).to_bytes(8, "big") + payload)
    pipe.flush()


class FrameReader:
    """Reads frames from the descriptor of a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._buffer = descriptor, bytearray()

    def __call__(self, timeout_s: float) -> Frame:
        """The next frame.

        Raises:
            ChildLostError: If it is not there within timeout_s, or never will be.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            end = _HEADER_BYTES + int.from_bytes(self._buffer[1:_HEADER_BYTES], "big")
            if len(self._buffer) >= max(end, _HEADER_BYTES):
                frame = Frame(chr(self._buffer[0]), bytes(self._buffer[_HEADER_BYTES:end]))
                del self._buffer[:end]
                return frame
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ChildLostError(hung=True)
            data = os.read(self._descriptor, 2**16)
            if not data:
                raise ChildLostError(hung=False)
            self._buffer += data


def table_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def read_table(data: bytes) -> pa.Table:
    """The table of table_bytes."""
    return pa.ipc.open_stream(data).read_all()


def pack(result: ShardResult) -> bytes:
    """A result as a payload."""
    parts = [table_bytes(getattr(result, name)) for name in TABLES]
    parts.append(json.dumps([dict(result.work), dict(result.seconds)]).encode())
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def unpack(payload: bytes) -> ShardResult:
    """The result of pack."""
    parts, rest = [], payload
    while rest:
        end = 8 + int.from_bytes(rest[:8], "big")
        parts.append(rest[8:end])
        rest = rest[end:]
    *tables, numbers = parts
    work, seconds = json.loads(numbers)
    return ShardResult(**dict(zip(TABLES, map(read_table, tables), strict=True)), work=work, seconds=seconds)

"""A remote object as a seekable file: every read is a range request."""

import io
from collections.abc import Callable
from typing import Final, NamedTuple

BUFFER_BYTES: Final = 2**20  # of one request, unless the reader asks for more at once


class Part(NamedTuple):
    """An answer to a range request: its bytes, the size of the whole object in bytes, and the object's ETag."""

    data: bytes
    size: int
    etag: str


Fetch = Callable[[str, str | None], Part]  # (range such as "bytes=0-99", the ETag the object must still have)


class RangeFile(io.RawIOBase):
    """The raw file under io.BufferedReader.

    The first request asks for the object's tail, because readers of Parquet begin there and because its answer also
    tells the size. Later requests name the ETag of the first answer, so that a replaced object is an error.
    """

    def __init__(self, fetch: Fetch) -> None:
        """Ask for the tail. Raises StorageError if the object cannot be read."""
        self._fetch, self._position = fetch, 0
        self._tail, self._size, self._etag = fetch(f"bytes=-{BUFFER_BYTES}", None)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; no request is made."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, target: bytearray | memoryview) -> int:  # type: ignore[override] # typeshed wants any buffer
        """Fill the target as far as the object goes, with at most one request."""
        count = max(0, min(len(target), self._size - self._position))
        if count:
            target[:count] = self._range(self._position, count)
            self._position += count
        return count

    def _range(self, start: int, count: int) -> bytes:
        tail_start = self._size - len(self._tail)
        if start >= tail_start:
            return self._tail[start - tail_start :][:count]
        return self._fetch(f"bytes={start}-{start + count - 1}", self._etag).data

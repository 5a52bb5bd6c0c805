"""Which ids occur more than once, in bounded memory: digests of the ids in bucket files, compared bucket by bucket."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_BUCKETS: Final = 256
_DIGEST_BYTES: Final = 16
_RECORD: Final = np.dtype([("high", ">u8"), ("low", ">u8"), ("row", "<i8")])

Records = np.ndarray[Any, np.dtype[np.void]]


def digests_of(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """128-bit digests of ids, shape [N, 2]. Equal only for equal ids: two others would need some 2**64 tries."""
    values = ids.cast(pa.large_binary()).to_pylist()
    joined = b"".join(blake2b(value, digest_size=_DIGEST_BYTES).digest() for value in values)
    return np.frombuffer(joined, ">u8").reshape(-1, 2).astype(np.uint64)


class UniqueIds:
    """Finds rows whose id an earlier row has. Needs 24 bytes of disk a row, and memory for one bucket of them."""

    def __init__(self, folder: Path) -> None:
        """Folder: an existing empty directory for the bucket files; the caller removes it."""
        self._paths = [folder / f"{number:03d}.ids" for number in range(_BUCKETS)]
        self._rows = 0
        self._found: list[NDArray[np.int64]] = []  # repeated within one call of add

    def add(self, ids: pa.Array | pa.ChunkedArray) -> None:
        """Add the next rows' ids; no null among them."""
        self.add_digests(digests_of(ids))

    def add_digests(self, digests_N2: NDArray[np.uint64]) -> None:
        """Add the next rows' ids by their digests; see digests_of."""
        count = len(digests_N2)
        records_N = np.empty(count, _RECORD)
        records_N["high"], records_N["low"] = digests_N2[:, 0], digests_N2[:, 1]
        records_N["row"] = np.arange(self._rows, self._rows + count)
        self._rows += count
        records_N, repeated_R = _split(records_N)
        self._found.append(repeated_R)  # an id that fills a whole catalog must not fill one bucket
        bounds = np.searchsorted(records_N["high"] >> np.uint64(56), np.arange(_BUCKETS + 1))
        for number in np.flatnonzero(np.diff(bounds)):
            with self._paths[number].open("ab") as file:
                file.write(records_N[bounds[number] : bounds[number + 1]].tobytes())

    def repeated(self) -> NDArray[np.int64]:
        """Rows, counted from 0 in the order of `add`, that have the id of an earlier row; ascending."""
        across = [_split(np.fromfile(path, _RECORD))[1] for path in self._paths if path.exists()]
        return np.sort(np.concatenate([np.empty(0, np.int64), *self._found, *across]))


def _split(records_N: Records) -> tuple[Records, NDArray[np.int64]]:
    """The first record of each digest, by digest, and the rows of the others."""
    records_N = records_N[np.lexsort((records_N["row"], records_N["low"], records_N["high"]))]
    same_N = np.zeros(len(records_N), dtype=bool)
    same_N[1:] = (records_N["high"][1:] == records_N["high"][:-1]) & (records_N["low"][1:] == records_N["low"][:-1])
    return records_N[~same_N], records_N["row"][same_N].astype(np.int64)

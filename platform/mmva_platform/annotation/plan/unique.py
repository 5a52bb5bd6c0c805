"""Finds repeated ids in bounded memory: writes their digests into bucket files and compares bucket by bucket."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pandas.util import hash_array

_BUCKETS: Final = 256
_KEYS: Final = ("item ids: first ", "item ids: second")
_HELD: Final = 1 << 20  # rows in memory before a write to disk
_RECORD: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])

Records = np.ndarray[Any, np.dtype[np.void]]


def digests_of(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """128-bit digests of ids, shape [N, 2]: SipHash under two keys. Takes half the time of a loop over hashlib."""
    text_N = ids.to_numpy(zero_copy_only=False)
    return np.stack([hash_array(text_N, hash_key=key, categorize=False) for key in _KEYS], axis=1)


class UniqueIds:
    """Finds rows with the id of an earlier row. Needs 24 bytes of disk a row, and memory for a bucket or `held` rows.

    `folder` is an existing empty directory for the bucket files; the caller removes it.
    """

    def __init__(self, folder: Path, held: int = _HELD) -> None:
        self._paths = [folder / f"{number:03d}.ids" for number in range(_BUCKETS)]
        self._rows, self._most_held = 0, held
        self._held: list[Records] = []
        self._found: list[NDArray[np.int64]] = []  # repeated rows among those that were in memory together

    def add(self, ids: pa.Array | pa.ChunkedArray) -> None:
        """Add the next rows' ids, none of them null."""
        self.add_digests(digests_of(ids))

    def add_digests(self, digests_N2: NDArray[np.uint64]) -> None:
        """Add the next rows' ids by their digests; see digests_of."""
        count = len(digests_N2)
        records_N = np.empty(count, _RECORD)
        records_N["high"], records_N["low"] = digests_N2[:, 0], digests_N2[:, 1]
        records_N["row"] = np.arange(self._rows, self._rows + count)
        self._rows += count
        self._held.append(records_N)
        if sum(map(len, self._held)) >= self._most_held:
            self._write()

    def _write(self) -> None:
        records_N, repeated_R = _split(np.concatenate(self._held))
        self._held = []
        self._found.append(repeated_R)  # not written: an id that is in every row must not fill one bucket
        bounds = np.searchsorted(records_N["high"] >> np.uint64(56), np.arange(_BUCKETS + 1))
        for number in np.flatnonzero(np.diff(bounds)):
            with self._paths[number].open("ab") as file:
                file.write(records_N[bounds[number] : bounds[number + 1]].tobytes())

    def repeated(self) -> NDArray[np.int64]:
        """Rows, counted from 0 in the order of `add`, that have the id of an earlier row; ascending."""
        if self._held:
            self._write()
        across = [_split(np.fromfile(path, _RECORD))[1] for path in self._paths if path.exists()]
        return np.sort(np.concatenate([np.empty(0, np.int64), *self._found, *across]))


def _split(records_N: Records) -> tuple[Records, NDArray[np.int64]]:
    """The first record of each digest, sorted by digest, and the rows of the others."""
    records_N = records_N[np.argsort(records_N["high"], kind="stable")]  # rows ascend already
    if np.any(records_N["high"][1:] == records_N["high"][:-1]):
        records_N = records_N[np.lexsort((records_N["row"], records_N["low"], records_N["high"]))]
    same_N = np.zeros(len(records_N), dtype=bool)
    same_N[1:] = (records_N["high"][1:] == records_N["high"][:-1]) & (records_N["low"][1:] == records_N["low"][:-1])
    return records_N[~same_N], records_N["row"][same_N].astype(np.int64)

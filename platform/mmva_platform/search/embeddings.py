"""Stored embeddings of a published annotation, a file at a time; every file is checked against its digest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva_platform.annotation.commit import FileRecord
from mmva_platform.annotation.publish import read_file
from mmva_platform.storage import Storage

_BLOCK: Final = 4096  # items whose embeddings are in memory as doubles

Block = tuple[NDArray[np.int64], NDArray[np.float32]]


class EmbeddingFile(NamedTuple):
    """A file of a shard, and which rows of the annotation stand in it."""

    place: Storage
    record: FileRecord
    start: int
    rows: int


def embeddings(
    files: Sequence[EmbeddingFile], own: int, may_N: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], Iterator[Block]]:
    """A row's embedding [D], and those that can be compared with it, in blocks of rows [B] and embeddings [B, D].

    Args:
        files: Of the annotation, in its order.
        own: The row; its modality is that of the others.
        may_N: Which rows are of interest. Videos of other tracks than the row's are left out all the same: their
            embeddings are towers' side by side, and so are of other lengths.

    Raises:
        CheckFailed: If a file is not the one that was published; of the others while the blocks are drawn.
    """
    (file,) = (file for file in files if file.start <= own < file.start + file.rows)
    row = _read(file).slice(own - file.start, 1)
    return _matrix(row)[0], _blocks(files, may_N, row["tracks"][0].as_py())


def _blocks(files: Sequence[EmbeddingFile], may_N: NDArray[np.bool_], tracks: list[str] | None) -> Iterator[Block]:
    for file in files:
        at_B = np.flatnonzero(may_N[file.start : file.start + file.rows])
        if not len(at_B):
            continue
        table = _read(file).take(pa.array(at_B))
        if tracks is not None:
            same_B = np.array([one == tracks for one in table["tracks"].to_pylist()])
            at_B, table = at_B[same_B], table.filter(pa.array(same_B))
        for first in range(0, len(at_B), _BLOCK):
            yield file.start + at_B[first : first + _BLOCK], _matrix(table.slice(first, _BLOCK))


def _read(file: EmbeddingFile) -> pa.Table:
    return read_file(file.place, file.record, ("tracks", "embedding"))


def _matrix(table: pa.Table) -> Any:
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)

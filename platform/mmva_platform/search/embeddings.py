"""Stored embeddings of an annotation, a data file at a time."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva_platform.annotation.table.delta import TableFile
from mmva_platform.annotation.table.reader import Annotation

_BLOCK: Final = 4096  # items whose embeddings are in memory at once

Block = tuple[NDArray[np.int64], NDArray[np.float32]]


def embeddings(
    annotation: Annotation, own: int, may_N: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], Iterator[Block]]:
    """A row's embedding [D], and blocks of candidates: rows [B] and embeddings [B, D].

    Rows are numbered in the order of the annotation's files. `may_N` marks the candidates. Videos with other tracks
    than the row's are left out, because their embeddings differ in length. Raises CheckFailed if a file is damaged.
    """
    (start, file), *_ = [(start, file) for start, file in _starts(annotation) if start <= own < start + file.rows]
    row = _read(annotation, file).slice(own - start, 1)
    return matrix_of(row)[0], _blocks(annotation, may_N, row["tracks"][0].as_py())


def _blocks(annotation: Annotation, may_N: NDArray[np.bool_], tracks: list[str] | None) -> Iterator[Block]:
    for start, file in _starts(annotation):
        at_B = np.flatnonzero(may_N[start : start + file.rows])
        if not len(at_B):
            continue
        table = _read(annotation, file).take(pa.array(at_B))
        if tracks is not None:
            same_B = np.array([one == tracks for one in table["tracks"].to_pylist()])
            at_B, table = at_B[same_B], table.filter(pa.array(same_B))
        for first in range(0, len(at_B), _BLOCK):
            yield start + at_B[first : first + _BLOCK], matrix_of(table.slice(first, _BLOCK))


def _starts(annotation: Annotation) -> Iterator[tuple[int, TableFile]]:
    """Each data file of annotated items, after the number of its first row."""
    start = 0
    for file in annotation.files():
        yield start, file
        start += file.rows


def _read(annotation: Annotation, file: TableFile) -> pa.Table:
    return annotation.read(file, ("tracks", "embedding"))


def matrix_of(table: pa.Table) -> Any:
    """The column `embedding` as an array [B, D]; all must have one length."""
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)

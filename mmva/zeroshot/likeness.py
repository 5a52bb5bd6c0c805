"""Exact nearest neighbours by cosine over blocks of embeddings, with one block and the results in memory.

The caller must only compare embeddings of one modality and one backbone.
Shapes: B items of a block, D numbers of an embedding, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SPARE: Final = 16  # hits above twice the wanted number before they are sorted


def most_alike(
    query_D: ArrayLike, blocks: Iterable[tuple[NDArray[np.int64], ArrayLike]], wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The at most `wanted` rows whose embeddings have the highest cosine with a query.

    Blocks are rows [B] and their embeddings [B, D]; an embedding of zeros has cosine 0. Returns rows and cosines in
    [-1, 1], [K] each, highest cosine first, equal ones in the order of the rows.
    """
    unit_D = np.asarray(query_D, np.float64)
    unit_D = unit_D / (np.linalg.norm(unit_D) or 1.0)
    row_K, cosine_K, least = np.empty(0, np.int64), np.empty(0), -np.inf
    for row_B, block in blocks:
        emb_BD = np.asarray(block, np.float64)
        norm_B = np.linalg.norm(emb_BD, axis=1)
        # Row by row, not with BLAS: equal embeddings must give equal results at any position in a block.
        cosine_B = np.einsum("bd,d->b", emb_BD, unit_D) / np.where(norm_B > 0, norm_B, 1.0)
        may_B = cosine_B >= least
        if not may_B.any():
            continue
        row_K, cosine_K = np.concatenate([row_K, row_B[may_B]]), np.concatenate([cosine_K, cosine_B[may_B]])
        if len(row_K) > 2 * wanted + _SPARE:  # not after every block: late pages have many hits to sort
            row_K, cosine_K = _best(row_K, cosine_K, wanted)
            least = cosine_K[-1]
    row_K, cosine_K = _best(row_K, cosine_K, wanted)
    return row_K, cosine_K.clip(-1, 1)


def _best(
    row_N: NDArray[np.int64], cosine_N: NDArray[np.float64], wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    best_K = np.lexsort((row_N, -cosine_N))[:wanted]
    return row_N[best_K], cosine_N[best_K]

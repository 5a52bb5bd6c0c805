"""Exact nearest neighbours by cosine, over embeddings that come in blocks: memory holds one block and the results.

The caller must compare only embeddings of one space, that is of one modality and one backbone.
Shapes: B items of a block, D numbers of an embedding, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray


def most_alike(
    query_D: ArrayLike, blocks: Iterable[tuple[NDArray[np.int64], ArrayLike]], wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows whose embeddings have the highest cosine with a query, at most `wanted`.

    Blocks are rows [B] and their embeddings [B, D]; an embedding of zeros has cosine 0. Returns rows and cosines in
    [-1, 1], [K] each, the most alike first, equal ones in the order of the rows.
    """
    unit_D = np.asarray(query_D, np.float64)
    unit_D = unit_D / (np.linalg.norm(unit_D) or 1.0)
    row_K, cosine_K = np.empty(0, np.int64), np.empty(0)
    for row_B, block in blocks:
        emb_BD = np.asarray(block, np.float64)
        norm_B = np.linalg.norm(emb_BD, axis=1)
        # Row by row, and not by BLAS: equal embeddings must give equal results at any place in a block.
        cosine_B = np.einsum("bd,d->b", emb_BD, unit_D) / np.where(norm_B > 0, norm_B, 1.0)
        row_K, cosine_K = np.concatenate([row_K, row_B]), np.concatenate([cosine_K, cosine_B])
        best_K = np.lexsort((row_K, -cosine_K))[:wanted]
        row_K, cosine_K = row_K[best_K], cosine_K[best_K]
    return row_K, cosine_K.clip(-1, 1)

"""Search by embedding: the index of `mmva annotations index` against a scan of all embeddings.

    python benchmarks/vectors.py [--items 1000000] [--dim 64] [--workdir DIR]

Embeddings around 2,000 centres, the ten most like thirty items. The scan is `most_alike` over embeddings that are in
memory already: in an annotation it reads them from storage, too.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmva.zeroshot.likeness import most_alike
from mmva.zeroshot.search import Region
from mmva_platform.search.vectors import VectorIndex, write_vectors

TOP, QUERIES, BLOCK = 10, 30, 8192


def blocks(items: int, dim: int) -> Iterator[tuple[Any, Any, Any]]:
    """Rows, points and embeddings; the same at every call."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2000, dim)).astype(np.float32)
    for start in range(0, items, BLOCK):
        row_B = np.arange(start, min(items, start + BLOCK))
        noise_BD = rng.normal(scale=0.7, size=(len(row_B), dim)).astype(np.float32)
        yield row_B, rng.random((len(row_B), 2), np.float32), centres[rng.integers(0, 2000, len(row_B))] + noise_BD


def main() -> None:
    """Print one line each for building, the index and the scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64, help="a multiple of 8")
    parser.add_argument("--workdir", type=Path)
    options = parser.parse_args()
    items, dim = options.items, options.dim
    folder = Path(tempfile.mkdtemp(prefix="mmva-vectors-", dir=options.workdir))
    try:
        begun = time.perf_counter()
        index = VectorIndex(write_vectors(blocks(items, dim), dim, items, str(folder / "index"), {}))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{items:,} x {dim}: built in {time.perf_counter() - begun:.0f} s, {size / 1e6:.0f} MB")
        compare(index, items, dim)
    finally:
        shutil.rmtree(folder)


def compare(index: VectorIndex, items: int, dim: int) -> None:
    """Time both, and count what the index misses."""
    own_Q = np.random.default_rng(1).choice(items, QUERIES, replace=False)
    everything = [(row_B, emb_BD) for row_B, _, emb_BD in blocks(items, dim)]
    times: dict[str, list[float]] = {"index": [], "scan": []}
    found = 0
    for own in own_Q.tolist():
        begun = time.perf_counter()
        by_index = index.nearest(own, TOP, Region())
        times["index"].append(time.perf_counter() - begun)
        assert by_index is not None
        query_D = everything[own // BLOCK][1][own % BLOCK]
        begun = time.perf_counter()
        row_K, _ = most_alike(query_D, everything, TOP + 1)
        times["scan"].append(time.perf_counter() - begun)
        found += len({*by_index[0].tolist()} & {*row_K[row_K != own][:TOP].tolist()})
    for name, spent in times.items():
        print(f"{name}: p50 {1000 * np.median(spent):.0f} ms, slowest {1000 * max(spent):.0f} ms")
    print(f"recall@{TOP} of the index: {found / TOP / QUERIES:.3f}")


if __name__ == "__main__":
    main()

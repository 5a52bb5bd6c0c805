"""Search in the VA plane: our strip scan against a full scan, scipy's cKDTree and FAISS flat, with and without filters.

    python benchmarks/search.py [--sizes 10000,100000,1000000] [--queries 60] [--rounds 5]

One thread. Points as labels lie (beta-distributed, four modalities of unequal size), the ten nearest to random queries:
of all points, of one modality, of one modality within a rectangle of a tenth of the plane, and the page after the first
thousand. Every method must find the same distances. The tree takes one tree a modality, and asks for more and more
neighbours until enough of them lie in the rectangle; FAISS takes filters as a bitmap of the rows that pass, which is
made within the call as for any filter that was not known before. Methods are interleaved; medians over rounds of each
round's median and 95th percentile. Exit code 1 where ours is slower than FAISS flat at a million points.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mmva.zeroshot.search import PlaneIndex, Region

TOP, SHARES = 10, (0.6, 0.2, 0.15, 0.05)
TENTH = Region((0.1, 0.4), (0.55, 0.9))
# offset, modality, region
CASES: dict[str, tuple[int, int | None, Region | None]] = {
    "all": (0, None, None),
    "modality": (0, 1, None),
    "modality and region": (0, 1, TENTH),
    "page 101": (1000, None, None),
}
Distances = NDArray[np.floating]
Search = Callable[[NDArray[np.float64], int, int | None, Region | None], Distances]


def passing(va_N2: NDArray[np.float32], group_N: NDArray[np.int64], group: int | None, region: Region | None) -> Any:
    """Which rows pass the filters; None if all do."""
    passes_N = None if group is None else group_N == group
    for axis, bounds in enumerate((region.valence, region.arousal) if region else ()):
        low, high = (np.float32(bound) for bound in bounds)
        inside_N = (va_N2[:, axis] >= low) & (va_N2[:, axis] <= high)
        passes_N = inside_N if passes_N is None else passes_N & inside_N
    return passes_N


def strip(va_N2: NDArray[np.float32], group_N: NDArray[np.int64]) -> Search:
    """Ours."""
    index = PlaneIndex(va_N2, group_N)

    def search(query_2: Any, offset: int, group: int | None, region: Region | None) -> Distances:
        groups = None if group is None else (group,)
        return index.nearest(query_2, TOP, offset=offset, groups=groups, region=region)[1]

    return search


def full_scan(va_N2: NDArray[np.float32], group_N: NDArray[np.int64]) -> Search:
    """All distances, then a partition."""
    valence_N, arousal_N = np.ascontiguousarray(va_N2[:, 0]), np.ascontiguousarray(va_N2[:, 1])

    def search(query_2: Any, offset: int, group: int | None, region: Region | None) -> Distances:
        valence, arousal = query_2.astype(np.float32)
        squared_N = (valence_N - valence) ** 2
        squared_N += (arousal_N - arousal) ** 2
        passes_N = passing(va_N2, group_N, group, region)
        if passes_N is not None:
            squared_N[~passes_N] = np.inf
        wanted = min(offset + TOP, len(squared_N))
        return np.sqrt(np.sort(np.partition(squared_N, wanted - 1)[:wanted])[offset:])

    return search


def kd_tree(va_N2: NDArray[np.float32], group_N: NDArray[np.int64]) -> Search:
    """One tree of everything and one a modality."""
    trees: dict[int | None, Any] = {None: cKDTree(va_N2)}
    trees |= {group: cKDTree(va_N2[group_N == group]) for group in range(len(SHARES))}

    def search(query_2: Any, offset: int, group: int | None, region: Region | None) -> Distances:
        tree, count = trees[group], offset + TOP
        while True:
            distance_K, row_K = tree.query(query_2, min(count, tree.n))
            if region is None:
                return distance_K[offset:]
            kept_K = distance_K[passing(tree.data[row_K].astype(np.float32), group_N, None, region)]
            if len(kept_K) >= offset + TOP or count >= tree.n:
                return kept_K[offset : offset + TOP]
            count *= 4

    return search


def faiss_flat(va_N2: NDArray[np.float32], group_N: NDArray[np.int64]) -> Search:
    """IndexFlatL2."""
    index = faiss.IndexFlatL2(2)
    index.add(va_N2)

    def search(query_2: Any, offset: int, group: int | None, region: Region | None) -> Distances:
        options = None
        passes_N = passing(va_N2, group_N, group, region)
        if passes_N is not None:
            bits = np.packbits(passes_N, bitorder="little")
            options = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        squared_1K, _ = index.search(query_2.astype(np.float32)[None], offset + TOP, params=options)
        return np.sqrt(squared_1K[0, offset:])

    return search


METHODS = {"strip scan (ours)": strip, "full scan": full_scan, "cKDTree": kd_tree, "FAISS flat": faiss_flat}


def measure(size: int, queries: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a query by case and method, and seconds to build."""
    rng = np.random.default_rng(size)
    va_N2 = rng.beta(2.2, 2.2, (size, 2)).astype(np.float32)
    group_N = rng.choice(len(SHARES), size, p=SHARES)
    asked_Q2 = rng.beta(2, 2, (queries, 2))
    built, build_s = {}, {}
    for name, make in METHODS.items():
        begun = time.perf_counter()
        built[name] = make(va_N2, group_N)
        build_s[name] = round(time.perf_counter() - begun, 3)
    found: dict[str, Any] = {"build_s": build_s}
    for case, (offset, group, region) in CASES.items():
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
        for number in range(rounds + 1):
            answers = {}
            for name, search in built.items():
                spent_ms = []
                for query_2 in asked_Q2:
                    begun = time.perf_counter()
                    answers[name] = search(query_2, offset, group, region)
                    spent_ms.append(1000 * (time.perf_counter() - begun))
                if number:  # the first round warms up
                    times[name].append((median(spent_ms), float(np.percentile(spent_ms, 95))))
            for name, answer in answers.items():
                np.testing.assert_allclose(answer, answers["cKDTree"], atol=2e-4, err_msg=f"{case}: {name}")
        found[case] = {
            name: {"p50_ms": round(median(p50 for p50, _ in each), 3), "p95_ms": round(median(p for _, p in each), 3)}
            for name, each in times.items()
        }
    return found


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    found = {int(size): measure(int(size), arguments.queries, arguments.rounds) for size in arguments.sizes.split(",")}
    print(json.dumps(found, indent=1))
    million = found.get(1_000_000, {})
    return int(
        any(million[c]["strip scan (ours)"]["p50_ms"] > million[c]["FAISS flat"]["p50_ms"] for c in CASES if million)
    )


if __name__ == "__main__":
    sys.exit(main())

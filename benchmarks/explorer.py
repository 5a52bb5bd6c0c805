"""The explorer's windows onto a million points, against sending all points once as JSON.

    python benchmarks/explorer.py [--points N]

In one run and interleaved: what the page gets for the whole plane, for zooms into its middle, and what it would get
if it took every point (id, modality, valence, arousal) instead. Times are medians of what the server computes,
compression included; sizes are those on the wire.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from mmva.affect import mood
from mmva.modalities import MEDIA_KINDS
from mmva.zeroshot.search import Region
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.search.explored import ExploredCatalog

ROUNDS = 7
ZOOMS = (1, 2, 4, 8, 16, 32, 64, 128)
CELLS = 128  # what the page asks for


def made_up(points: int) -> ExploredCatalog:
    """An index of points in a few clusters, some modalities larger than others."""
    rng = np.random.default_rng(0)
    kind_N = rng.choice(4, points, p=[0.55, 0.3, 0.12, 0.03])
    centres = rng.uniform(0.3, 0.7, (12, 2))
    va_N2 = np.clip(centres[rng.integers(0, 12, points)] + rng.normal(0, 0.09, (points, 2)), 0, 1).astype(np.float32)
    names = np.array(MEDIA_KINDS)[kind_N]
    ids = [f"{name}/{row // 1000:04d}/item-{row:07d}" for row, name in enumerate(names)]
    columns = {"id": ids, "uri": ids, "modality": names, "valence": va_N2[:, 0], "arousal": va_N2[:, 1]}
    table = pa.table(columns | {"mood": mood(va_N2).tolist()})
    return ExploredCatalog("/made-up", "run", ModelInfo(name="mmva", version=None, digest="d" * 64), table)


def middle(zoom: int) -> Region:
    """A window that shows 1 / zoom of each axis, with the page's margin."""
    half = min(0.5, 0.62 / zoom)
    return Region((0.5 - half, 0.5 + half), (0.5 - half, 0.5 + half))


def packed(content: Any) -> bytes:
    """As the explorer's routes send it."""
    return gzip.compress(json.dumps(content, separators=(",", ":")).encode(), 4, mtime=0)


def everything(index: ExploredCatalog) -> dict[str, Any]:
    """The peer: all points."""
    items = index.items
    points = {axis: np.round(np.asarray(items[axis], np.float64), 4).tolist() for axis in ("valence", "arousal")}
    return {"id": items["id"].to_pylist(), "modality": items["modality"].to_pylist()} | points


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    points = parser.parse_args().points
    explored = made_up(points)
    begun = time.perf_counter()
    explored.view(middle(ZOOMS[0]), MEDIA_KINDS, CELLS)  # the first window sorts the points
    opened = time.perf_counter() - begun
    cases: dict[str, Callable[[], Any]] = {
        f"window, zoom {zoom}": lambda zoom=zoom: explored.view(middle(zoom), MEDIA_KINDS, CELLS) for zoom in ZOOMS
    }
    cases["neighbours of a point"] = lambda: {
        kind: [hit.to_json() for hit in hits] for kind, hits in explored.around((0.5, 0.5)).items()
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    sizes, shown = {}, {}
    all_times = []
    for round_ in range(ROUNDS):
        if round_ < 3:  # it takes seconds
            begun = time.perf_counter()
            whole = len(packed(everything(explored)))
            all_times.append(time.perf_counter() - begun)
        for name, make in cases.items():
            begun = time.perf_counter()
            content = make()
            sizes[name] = len(packed(content))
            times[name].append(time.perf_counter() - begun)
            shown[name] = (
                f"{content['total']:,} as {'counts' if 'counts' in content else 'points'}" if "total" in content else ""
            )
    peer = statistics.median(all_times)
    print(f"{points:,} points; sorted for windows in {opened:.2f} s")
    print(f"all points: {whole / 1e6:.1f} MB, {peer * 1e3:.0f} ms\n")
    print("| request | shows | kB | share of all | ms | share of all |\n|---|---|---|---|---|---|")
    for name in cases:
        taken = statistics.median(times[name])
        print(
            f"| {name} | {shown[name]} | {sizes[name] / 1e3:.1f} | {sizes[name] / whole:.2%} | {taken * 1e3:.1f} "
            f"| {taken / peer:.2%} |"
        )


if __name__ == "__main__":
    main()

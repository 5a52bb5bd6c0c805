"""The table of docs/scale.md: what a catalog of JPEGs costs, from measured rates and a price list.

    python benchmarks/scale.py

Arithmetic, and nothing is run. A test holds the page's table against what this prints, so a new rate goes in here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from mmva.inference.config import EngineInfo
from mmva_platform.annotation.shards import limits_for

IMAGES_S = 82.0  # of one core; annotation.py in README.md, 164 of two cores, compact preset, ONNX Runtime
FIXED_S = 13.9  # of a run, the same
TRACKS_TIMES_REAL = 78.6 / 2  # of one core, the same, tracks of three minutes
FROM_BASE_S = 10_800.0  # rows of one core by new heads over stored embeddings; reannotation.py
ROW_KB = 5.4  # with an embedding of 1,280 float32
CORES = 8  # of a c7i.4xlarge, which sells them as 16 vCPU
SPOT_H, GET_1000, PUT_1000, STORED_GB_MONTH = 0.29, 0.0004, 0.005, 0.023
REQUESTS_OF_A_SHARD = 4  # three files and a record
SIZES = {10**6: 1, 10**8: 16, 10**10: 200}  # images -> machines


@dataclass(frozen=True)
class Cost:
    """What one catalog of images takes; perfect scaling is assumed."""

    images: int
    machines: int

    @property
    def core_hours(self) -> float:
        """Of computing."""
        return self.images / IMAGES_S / 3600

    @property
    def hours(self) -> float:
        """On these machines, the run's fixed cost included."""
        return self.core_hours / CORES / self.machines + FIXED_S / 3600

    @property
    def spot_usd(self) -> float:
        """Of the machines."""
        return self.hours * self.machines * SPOT_H

    @property
    def shard_items(self) -> int:
        """As the run cuts them."""
        engines = {"image": EngineInfo(name="onnx", items_per_s={"onnx": IMAGES_S})}
        return round(limits_for({"image": float(self.images)}, self.images, engines, hop_s=1.5).seconds * IMAGES_S)

    @property
    def shards(self) -> int:
        """Of this size."""
        return ceil(self.images / self.shard_items)

    @property
    def output_gb(self) -> float:
        """Rows with their embeddings."""
        return self.images * ROW_KB / 1e6


def table() -> list[str]:
    """The page's table in Markdown."""
    costs = [Cost(images, machines) for images, machines in SIZES.items()]
    rows = [
        ["", *(amount(cost.images) for cost in costs)],
        ["---"] * (len(costs) + 1),
        ["core hours", *(rounded(cost.core_hours) for cost in costs)],
        ["machines, time", *(f"{cost.machines}, {duration(cost.hours)}" for cost in costs)],
        ["computing, spot", *(dollars(cost.spot_usd) for cost in costs)],
        ["shards (as the run cuts them)", *(f"{cost.shards:,} of {cost.shard_items:,}" for cost in costs)],
        ["GET (media)", *(f"{amount(cost.images)}, {dollars(cost.images / 1000 * GET_1000)}" for cost in costs)],
        ["PUT, LIST, GET of the run itself", *(_own_requests(cost) for cost in costs)],
        ["output", *(f"{size(cost.output_gb)}, {dollars(cost.output_gb * STORED_GB_MONTH)} a month" for cost in costs)],
        ["new heads over stored embeddings", *(_heads(cost) for cost in costs)],
    ]
    return [("|---" * len(row) + "|") if row[0] == "---" else f"| {' | '.join(row)} |" for row in rows]


def _own_requests(cost: Cost) -> str:
    requests = REQUESTS_OF_A_SHARD * cost.shards
    return f"{requests / 1000:.0f} k, {dollars(requests / 1000 * PUT_1000)}"


def _heads(cost: Cost) -> str:
    seconds = cost.images / FROM_BASE_S
    return f"{seconds:.0f} core s" if seconds < 3600 else f"{rounded(seconds / 3600)} core h"


def amount(count: int) -> str:
    """1 M, 10 G."""
    return f"{count // 10**9} G" if count >= 10**9 else f"{count // 10**6} M"


def rounded(value: float) -> str:
    """Two significant ones."""
    return f"{value:.1f}" if value < 10 else f"{round(value, 2 - len(str(int(value)))):,.0f}"


def dollars(value: float) -> str:
    """Cents below ten."""
    return f"${value:.2f}" if value < 10 else f"${rounded(value)}"


def duration(hours: float) -> str:
    """Minutes below two hours."""
    return f"{hours * 60:.0f} min" if hours < 2 else f"{rounded(hours)} h"


def size(gb: float) -> str:
    """GB or TB."""
    return f"{rounded(gb)} GB" if gb < 10_000 else f"{rounded(gb / 1000)} TB"


if __name__ == "__main__":
    print("\n".join(table()))

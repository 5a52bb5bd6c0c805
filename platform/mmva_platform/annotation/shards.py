"""The order of the work and its cut into shards: pure functions of the catalog's items.

Shards are sized by estimated work, not by count, and a shard is the unit of commit and retry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

# Estimated work in units of one image (some 15 ms on one core with the compact preset).
_COST: Final = {"image": 1.0, "caption": 0.2}
_MUSIC_COST_PER_S: Final = 2.0
_MUSIC_UNKNOWN_S: Final = 5.0
# Bytes of a second of audio, by format: CD quality where it is not compressed, usual bit rates elsewhere.
_BYTES_PER_S: Final = {"wav": 176_400, "flac": 90_000, "mp3": 24_000, "ogg": 20_000, "opus": 14_000}
_BYTES_PER_S_OTHER: Final = 20_000
_MODALITY_ORDER: Final = ("music", "image", "caption")  # the longest work first, so that no actor is left with it alone
_SHARDS_WANTED, _SMALLEST_SHARD = 16, 8.0


def estimated_costs(items: pa.Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Estimated work of each item, shape [N], in units of one image."""
    return np.array([_cost(row) for row in items.select(["uri", "modality", "bytes"]).to_pylist()], dtype=np.float64)


def _cost(row: dict[str, Any]) -> float:
    if row["modality"] != "music":
        return _COST.get(row["modality"], 1.0)
    if row["bytes"] is None:
        return _MUSIC_COST_PER_S * _MUSIC_UNKNOWN_S
    extension = str(row["uri"]).rpartition(".")[2].lower()
    return max(1.0, _MUSIC_COST_PER_S * row["bytes"] / _BYTES_PER_S.get(extension, _BYTES_PER_S_OTHER))


def shard_bounds(costs: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]], shard_items: int) -> tuple[int, ...]:
    """Cut ordered items into runs of about equal work.

    A shard takes items until its work passes the target: `shard_items`, or less for a small catalog, so that there are
    shards for every actor. An item that is more than the target is a shard of its own.

    Returns:
        Ascending bounds, shape [shards + 1], from 0 to len(costs).
    """
    target = min(float(shard_items), max(_SMALLEST_SHARD, float(np.sum(costs)) / _SHARDS_WANTED))
    bounds, work = [0], 0.0
    for index, cost in enumerate(costs):
        full = work + cost > target or index - bounds[-1] >= _most_items(shard_items)
        if work and full:
            bounds.append(index)
            work = 0.0
        work += cost
    return (*bounds, len(costs))


def _most_items(shard_items: int) -> int:
    """Cheap items are many to a shard, but a shard stays a thing that one commit record can lose."""
    return 8 * shard_items


def ordered(items: pa.Table) -> pa.Table:
    """Items by modality, the catalog's order within: a shard's items then share their batches."""
    rank = {name: position for position, name in enumerate(_MODALITY_ORDER)}
    ranks = [rank.get(name, len(rank)) for name in items.column("modality").to_pylist()]
    return items.take(pa.array(np.argsort(np.array(ranks), kind="stable"))).combine_chunks()

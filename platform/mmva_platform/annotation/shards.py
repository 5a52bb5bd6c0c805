"""The order of the work and its cut into shards: pure functions of the catalog's items.

Shards are sized by estimated work, not by count, and a shard is the unit of commit and retry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Estimated work in units of one image (some 15 ms on one core with the compact preset).
_COST: Final = {"image": 1.0, "caption": 0.2}
_COST_FROM_BASE: Final = 1 / 500
_COST_PER_S: Final = {"music": 2.0, "video": 5.0}
_UNKNOWN_S: Final = {"music": 5.0, "video": 30.0}
# Bytes of a second of sound or video, by format: CD quality where it is not compressed, usual bit rates elsewhere.
_BYTES_PER_S: Final = {"wav": 176_400, "flac": 90_000, "mp3": 24_000, "ogg": 20_000, "opus": 14_000}
_BYTES_PER_S_OTHER: Final = {"music": 20_000, "video": 250_000}
# The longest work first, so that no actor is left with it alone.
_MODALITY_ORDER: Final = ("video", "music", "image", "caption")
_SHARDS_WANTED, _SMALLEST_SHARD = 16, 8.0
_SHARD_ITEMS, _LARGE_SHARD_ITEMS, _SHARDS_AIMED_AT = 64, 1024, 4000
_MOST_SHARDS: Final = 20_000  # each is a listed commit record; beyond, shards grow past _LARGE_SHARD_ITEMS
_MOST_BASE_ITEMS: Final = 32_768  # a shard of stored embeddings stands in memory, some 170 MB of it

Costs = NDArray[np.float64]


def ordered(items: pa.Table) -> pa.Table:
    """Items (ITEM_SCHEMA) in the order of the work.

    First what is annotated anew, by modality, so that a shard's items share their batches; in a modality items that may
    have the same bytes (equal known size, else equal URI or caption) stand where the first of them stands, otherwise
    the catalog's order holds. Then what an earlier annotation holds, by its files there.
    """
    items = items.combine_chunks()
    base_N = _first_seen(items.column("base_file"))  # -1: annotated anew
    rank_N = np.where(base_N < 0, _modality_ranks(items), -1)
    twin_N = np.where(base_N < 0, _first_seen(_twin_keys(items, rank_N)), 0)
    return items.take(pa.array(np.lexsort((twin_N, rank_N, base_N))))


def _modality_ranks(items: pa.Table) -> NDArray[np.int64]:
    rank_N = pc.index_in(items.column("modality"), value_set=pa.array(_MODALITY_ORDER)).fill_null(len(_MODALITY_ORDER))
    return np.asarray(rank_N.to_numpy(), dtype=np.int64)


def _twin_keys(items: pa.Table, rank_N: NDArray[np.int64]) -> pa.ChunkedArray:
    """Equal for items of one modality that may have the same bytes."""
    sizes = items.column("bytes").cast(pa.large_string())
    uris, captions = (items.column(name).cast(pa.large_string()) for name in ("uri", "caption"))
    key = pc.coalesce(_tagged("c", captions), _tagged("b", sizes), _tagged("u", uris), pa.scalar("", pa.large_string()))
    return pc.binary_join_element_wise(pa.array(rank_N).cast(pa.large_string()), key, pa.scalar("", pa.large_string()))


def _tagged(tag: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(pa.scalar(tag, pa.large_string()), values, pa.scalar("", pa.large_string()))


def _first_seen(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """Rank of each value by its first place; -1 for null. Shape [N]."""
    codes = pc.dictionary_encode(values.cast(pa.large_string()).combine_chunks())
    chunk = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    return np.asarray(chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def estimated_costs(items: pa.Table) -> Costs:
    """Estimated work of each item, shape [N], in units of one image."""
    modalities = items.column("modality")
    costs_N = np.ones(items.num_rows)
    for name, cost in _COST.items():
        costs_N[_mask(pc.equal(modalities, name))] = cost
    for name in _COST_PER_S:
        of_it_N = _mask(pc.equal(modalities, name))
        if of_it_N.any():
            costs_N[of_it_N] = _costs_of_long(items.filter(pa.array(of_it_N)), name)
    if "base_file" in items.column_names:
        costs_N[_mask(items.column("base_file").is_valid())] = _COST_FROM_BASE
    return costs_N


def _costs_of_long(items: pa.Table, modality: str) -> Costs:
    return np.maximum(1.0, _COST_PER_S[modality] * estimated_seconds(items, modality))


def estimated_seconds(items: pa.Table, modality: str) -> NDArray[np.float64]:
    """Duration of music or video by the format's usual bit rate, shape [N]; needs the columns uri and bytes."""
    names = pc.utf8_lower(items.column("uri").fill_null(""))
    rate_M = np.full(items.num_rows, float(_BYTES_PER_S_OTHER[modality]))
    for extension, rate in _BYTES_PER_S.items():
        rate_M[_mask(pc.ends_with(names, f".{extension}"))] = rate
    bytes_M = items.column("bytes").cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    return np.where(np.isnan(bytes_M), _UNKNOWN_S[modality], bytes_M / rate_M)


def _mask(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(values.fill_null(False).to_numpy(), dtype=bool)  # noqa: FBT003 - Arrow's own signature


def cut(items: pa.Table, shard_items: int | None) -> tuple[int, ...]:
    """Cut ordered items into shards; none holds both items annotated anew and items of an earlier annotation.

    Args:
        items: As `ordered` gives them.
        shard_items: Largest shard, in images or the same amount of other work; None chooses by the catalog's size.

    Returns:
        Ascending bounds, shape [shards + 1], from 0 to the number of items.
    """
    costs_N = estimated_costs(items)
    size = shard_items or auto_shard_items(float(costs_N.sum()))
    anew = items.column("base_file").null_count
    bounds = shard_bounds(costs_N[:anew], size)
    from_base = shard_bounds(costs_N[anew:], size, most_items=min(int(size / _COST_FROM_BASE), _MOST_BASE_ITEMS))
    return (*bounds, *(anew + bound for bound in from_base[1:]))


def auto_shard_items(work: float) -> int:
    """Largest shard for so many images of work: 64 to some 250,000, then more, so that shards stay thousands."""
    size = _SHARD_ITEMS
    while work / size > (_SHARDS_AIMED_AT if size < _LARGE_SHARD_ITEMS else _MOST_SHARDS):
        size *= 2
    return size


def shard_bounds(costs: Sequence[float] | Costs, shard_items: int, most_items: int | None = None) -> tuple[int, ...]:
    """Cut ordered items into runs of about equal work.

    A shard takes items until its work passes the target: `shard_items`, or less for a small catalog, so that there are
    shards for every actor. An item that is more than the target is a shard of its own. Cheap items are many to a shard,
    but at most `most_items` (8 * shard_items): a shard stays a thing that one commit record can lose.

    Returns:
        Ascending bounds, shape [shards + 1], from 0 to len(costs); (0,) for no items.
    """
    done_N1 = np.concatenate([[0.0], np.cumsum(np.asarray(costs, dtype=np.float64))])
    target = min(float(shard_items), max(_SMALLEST_SHARD, float(done_N1[-1]) / _SHARDS_WANTED))
    reach = target * (1 + 1e-9)  # the sums of equal costs must not round one item away
    most = most_items or 8 * shard_items
    bounds, count = [0], len(done_N1) - 1
    while (start := bounds[-1]) < count:
        stop = int(np.searchsorted(done_N1, done_N1[start] + reach, side="right")) - 1
        bounds.append(min(max(stop, start + 1), start + most, count))
    return tuple(bounds)


def as_counts(items: pa.Table) -> dict[str, int]:
    """Items of each modality, in the order of their first; "unknown" where none is named."""
    counted: list[dict[str, Any]] = items.column("modality").value_counts().to_pylist()
    return {entry["values"] or "unknown": entry["counts"] for entry in counted}

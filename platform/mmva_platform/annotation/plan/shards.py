"""Orders the work and cuts it into shards: pure functions of items (ITEM_SCHEMA).

A shard is the unit of commit and retry. It takes about a minute at the calibrated speed of the run's model.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmva.inference.config import EngineInfo
from mmva.modalities import MODALITIES, towers_of

# The longest items first, so that at the end no single worker still has one.
MODALITY_ORDER: Final = ("video", "music", "image", "caption")
MOST_SHARDS: Final = 1_000_000  # names have six digits, so that they sort as numbers
_SHARD_S: Final = 60.0
_MOST_ROWS: Final = 65_536
_MOST_STORED_ROWS: Final = 32_768  # rows with stored embeddings are in memory together, about 5 kB each
_FEWEST_STORED_ROWS: Final = 4_096  # running the heads on them takes less than a second
_SHARDS_WANTED, _SMALLEST_SHARD = 16, 8  # a small catalog needs shards for every worker, but no tiny ones
_UNKNOWN_PER_S: Final = 8.0  # images, windows or captions of an unmeasured engine, as of a large model on one core
_UNKNOWN_PER_S_ON_GPU: Final = 200.0
# Bytes of a second of sound or video, by format: CD quality if it is not compressed, else usual bit rates.
_BYTES_PER_S: Final = {"wav": 176_400, "flac": 90_000, "mp3": 24_000, "ogg": 20_000, "opus": 14_000}
_BYTES_PER_S_OTHER: Final = {"music": 20_000, "video": 250_000}
_UNKNOWN_S: Final = {"music": 180.0, "video": 60.0}
# Bytes of one unit between the stages of a run on GPUs: pixels of an image of 400 x 300, 16-bit sound at 48 kHz.
_DECODED_BYTES: Final = {"image": 360_000.0, "caption": 1_000.0, "music": 96_000.0, "video": 250_000.0}
_MOST_DECODED_BYTES: Final = 256e6

Loads = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """Limits of a shard. `seconds` is infinite if --shard-items sets the size, `decoded_bytes` with a single stage."""

    rows: int  # most items
    seconds: float = np.inf  # most work of one worker, by the estimate
    decoded_bytes: float = np.inf  # most bytes of decoded media
    unit_s: Mapping[str, float] | None = None  # modality -> seconds for one unit of `units`

    def loads(self, items: pa.Table) -> Loads:
        """The share of each limit that each item takes, shape [N, 3]; a shard is full at 1."""
        loads_N3 = np.full((items.num_rows, 3), 1 / self.rows)
        units_N = units(items)
        loads_N3[:, 1] = _weights(items, self.unit_s or {}) * units_N / self.seconds
        loads_N3[:, 2] = _weights(items, _DECODED_BYTES) * units_N / self.decoded_bytes
        return loads_N3


def limits_for(
    units_of: Mapping[str, float],
    rows: int,
    engines: Mapping[str, EngineInfo],
    hop_s: float,
    shard_items: int | None = None,
) -> Limits:
    """Limits of the shards that are annotated from their media, `rows` items in all.

    `units_of` sums `units` by modality. `engines` (tower -> engine) have measured speeds, if known. `hop_s` is the time
    between the starts of two windows. `shard_items` replaces the limit of time.
    """
    on_gpus = any(engine.on_gpu for engine in engines.values())
    most_bytes = _MOST_DECODED_BYTES if on_gpus else np.inf
    share = max(1 / _SHARDS_WANTED, _SMALLEST_SHARD / max(1, rows))  # of the catalog
    if shard_items is not None:
        return Limits(max(1, min(shard_items, round(share * rows))), decoded_bytes=most_bytes)
    unit_s = seconds_per_unit(engines, hop_s)
    total_s = sum(unit_s.get(name, 0.0) * count for name, count in units_of.items())
    seconds = min(max(_SHARD_S, 2 * total_s / MOST_SHARDS), share * total_s) or np.inf
    return Limits(_MOST_ROWS, seconds, most_bytes, unit_s)


def limits_for_stored(rows: int) -> Limits:
    """Limits of the shards whose items the version before has, `rows` items in all."""
    return Limits(min(_MOST_STORED_ROWS, max(_FEWEST_STORED_ROWS, rows // _SHARDS_WANTED)))


def seconds_per_unit(engines: Mapping[str, EngineInfo], hop_s: float) -> dict[str, float]:
    """Modality -> estimated seconds of one worker for one unit of `units`."""
    tower_s: dict[str, float] = {name: 1 / _speed(engines.get(name)) for name in MODALITIES}
    windows = {"music": 1 / hop_s, "video": 1 / hop_s}  # of each second
    return {name: sum(tower_s[tower] for tower in towers_of(name)) * windows.get(name, 1.0) for name in MODALITY_ORDER}


def as_duration(seconds: float) -> str:
    """Seconds, minutes, hours or days."""
    for limit, divisor, unit in ((99.5, 1, "s"), (5970, 60, "min"), (172_000, 3600, "h")):
        if seconds < limit:
            return f"{max(1, round(seconds / divisor))} {unit}"
    return f"{seconds / 86400:.1f} days"


def _speed(engine: EngineInfo | None) -> float:
    """Images, windows or captions per second of one worker."""
    if engine is None:
        return _UNKNOWN_PER_S
    return engine.items_per_s.get(engine.name) or (_UNKNOWN_PER_S_ON_GPU if engine.on_gpu else _UNKNOWN_PER_S)


def units(items: pa.Table) -> NDArray[np.float64]:
    """Amount of work of each item, shape [N]: 1 for images and captions, seconds of sound for music and video."""
    units_N = np.ones(items.num_rows)
    for name in _UNKNOWN_S:
        of_it_N = _mask(pc.equal(items["modality"], name))
        if of_it_N.any():
            units_N[of_it_N] = np.maximum(1.0, _estimated_seconds(items.filter(pa.array(of_it_N)), name))
    return units_N


def _estimated_seconds(items: pa.Table, modality: str) -> NDArray[np.float64]:
    """Duration of music or video by the format's usual bit rate, shape [M]."""
    names = pc.utf8_lower(items["uri"].fill_null(""))
    rate_M = np.full(items.num_rows, float(_BYTES_PER_S_OTHER[modality]))
    for extension, rate in _BYTES_PER_S.items():
        rate_M[_mask(pc.ends_with(names, f".{extension}"))] = rate
    bytes_M = items["bytes"].cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    return np.where(np.isnan(bytes_M), _UNKNOWN_S[modality], bytes_M / rate_M)


def _weights(items: pa.Table, weight_of: Mapping[str, float]) -> NDArray[np.float64]:
    """The weight of each item's modality, 0 for others; shape [N]."""
    weights_M1 = np.array([*(weight_of.get(name, 0.0) for name in MODALITY_ORDER), 0.0])
    position = pc.index_in(items["modality"], value_set=pa.array(MODALITY_ORDER, pa.large_string()))
    return weights_M1[position.fill_null(len(MODALITY_ORDER)).to_numpy()]


def _mask(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(values.fill_null(False).to_numpy(), dtype=bool)  # noqa: FBT003 - Arrow's own signature


def equals_together(items: pa.Table) -> pa.Table:
    """Reorder items of one modality, so that items that may have the same bytes follow the first of them.

    A shard annotates the same bytes once. Captions with equal text and files of equal known size may be the same.
    """
    nothing = pa.scalar("", pa.large_string())
    sizes = items["bytes"].cast(pa.large_string())
    tagged = [
        pc.binary_join_element_wise(pa.scalar(tag, pa.large_string()), values, nothing)
        for tag, values in (("c", items["caption"]), ("b", sizes), ("u", items["uri"]))
    ]
    return items.take(pa.array(np.argsort(first_seen(pc.coalesce(*tagged, nothing)), kind="stable")))


def first_seen(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """Rank of each value by its first occurrence, shape [N]; -1 for null."""
    codes = pc.dictionary_encode(values.combine_chunks())
    chunk = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    return np.asarray(chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def cut(chunks: Iterable[pa.Table], limits: Limits) -> Iterator[pa.Table]:
    """Cut a stream of items into shards, one table each; memory holds one chunk and less than one shard."""
    rest: pa.Table | None = None
    for chunk in chunks:
        items = chunk if rest is None else pa.concat_tables([rest, chunk])
        bounds = shard_bounds(limits.loads(items))
        for start, stop in pairwise(bounds[:-1]):
            yield items.slice(start, stop - start)
        rest = items.slice(bounds[-2]) if len(bounds) > 1 else items
    if rest is not None and rest.num_rows:
        yield rest


def shard_bounds(loads_NK: Loads) -> tuple[int, ...]:
    """Cut N ordered items into shards that exceed none of K limits; an item with a load above 1 is a shard of its own.

    Returns ascending bounds, shape [shards + 1], from 0 to N; (0,) for no items.
    """
    count = len(loads_NK)
    done_NK = np.vstack([np.zeros((1, loads_NK.shape[1])), np.cumsum(loads_NK, axis=0)])
    reach = 1 + 1e-9  # rounding of sums must not exclude the last of equal loads
    bounds = [0]
    while (start := bounds[-1]) < count:
        stops = [np.searchsorted(done_N, done_N[start] + reach, side="right") - 1 for done_N in done_NK.T]
        bounds.append(max(int(min(stops)), start + 1))
    return tuple(bounds)

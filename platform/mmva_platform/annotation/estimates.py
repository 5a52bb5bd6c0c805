"""How long an item takes: some of the catalog's own items fetched, decoded and, where need be, embedded here and now.

An engine whose speed is known is not run: then only the number of an item's units (images, windows, texts) matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmva.bundle import read_bundle_info
from mmva.inference.decode import Decoder
from mmva.inference.prefetch import THREADS
from mmva.media.limits import Limits
from mmva.modalities import MEDIA_KINDS, towers_of
from mmva.predictor import Predictor
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.roots import AllowedRoots
from mmva_platform.annotation.shards import estimated_seconds
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, StorageUnavailable

BUDGET_S: Final = 10.0
_SAMPLES, _BATCH = 8, 16
_SEED: Final = 0


@dataclass
class ItemTime:
    """What sampled items of a modality took on one core.

    Attributes:
        sampled: How many items.
        failed: Those that could not be read.
        fetch_s, decode_s, infer_s: Seconds an item.
        cut_short: Whether an item was longer than the time there was; the rest of it is reckoned from its size.
        units: Units of all sampled items for each tower.
    """

    sampled: int = 0
    failed: int = 0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    infer_s: float = 0.0
    cut_short: bool = False
    units: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Of one actor for an item, fetching ahead; None if no item could be read."""
        if self.failed == self.sampled:
            return None
        return max(self.fetch_s / THREADS, self.decode_s + self.infer_s)


class ItemTimer:
    """Times items of a catalog in this process."""

    def __init__(self, bundle_dir: Path, plan: Plan, storage: Storage, settings: Settings) -> None:
        """Bind to a model and a plan's preprocessing and roots; the model is loaded only if something must be embedded.

        Args:
            bundle_dir: The model.
            plan: Preprocessing and roots; nothing outside the roots is asked for.
            storage: The run's output; nothing is written to it.
            settings: Storage, and where backbones come from.
        """
        from mmva_platform.annotation.worker import Fetcher

        self._bundle_dir, self._plan, self._storage, self._settings = bundle_dir, plan, storage, settings
        self._info, self._limits = read_bundle_info(bundle_dir), Limits()
        self._roots = AllowedRoots(plan.roots)
        self._fetch: Callable[[str, int | None, int], bytes] = Fetcher(settings.storage, plan.roots)
        self._decoder = Decoder(self._info.dims, self._sample_rate, plan.preprocessing, self._limits)

    def times(self, items: pa.Table, speeds: Mapping[str, float], budget_s: float = BUDGET_S) -> dict[str, ItemTime]:
        """Time some items of each modality that the model can annotate.

        Args:
            items: ITEM_SCHEMA or CATALOG_SCHEMA.
            speeds: Tower -> units a second on one core, where it is known.
            budget_s: Seconds for all of it, loading encoders not counted; a unit under way is finished.
        """
        present = set(pc.unique(items["modality"]).to_pylist())
        modalities = [name for name in MEDIA_KINDS if name in present and self._decoder.refusal(name) is None]
        found: dict[str, ItemTime] = {}
        for modality in modalities:
            of_it = items.filter(pc.equal(items["modality"], modality))
            for tower in towers_of(modality):
                if tower in self._info.dims and tower not in speeds:
                    self._model.encoder(tower)
            found[modality] = self._time(of_it, speeds, budget_s / len(modalities))
        return found

    def _time(self, items: pa.Table, speeds: Mapping[str, float], budget_s: float) -> ItemTime:
        total = ItemTime()
        contents: dict[str, list[Any]] = {}
        begun = time.monotonic()
        for row in picked(items, self._roots, _SAMPLES):
            if total.sampled and time.monotonic() - begun > budget_s / 2:
                break
            self._decode(row, total, contents, begun + budget_s / 2)
        count = max(1, total.sampled)
        total.fetch_s, total.decode_s = total.fetch_s / count, total.decode_s / count
        for tower, units in total.units.items():
            known = tower in speeds
            unit_s = 1 / speeds[tower] if known else self._unit_s(tower, contents[tower], begun + budget_s)
            total.infer_s += unit_s * units / count
        return total

    def _decode(self, row: Mapping[str, Any], total: ItemTime, contents: dict[str, list[Any]], until: float) -> None:
        """Fetch and decode one item and add what it took; one that fails counts with the time until then."""
        total.sampled += 1
        begun = time.perf_counter()
        decoding = begun
        done: dict[str, int] = {}
        short, data = False, b""
        try:
            data = self._bytes_of(row)
            decoding = time.perf_counter()
            for unit in self._decoder.units(row["modality"], data):
                done[unit.track] = done.get(unit.track, 0) + 1
                kept = contents.setdefault(unit.track, [])
                if len(kept) < _BATCH:
                    kept.append(unit.content)
                if short := time.monotonic() > until:
                    break
        except StorageUnavailable:
            raise
        except Exception:  # noqa: BLE001 - what is wrong with an item is found out and recorded by the run
            total.failed += 1
        decode_s = time.perf_counter() - decoding if data else 0.0
        scale = self._whole(row, len(data), done) if short else 1.0
        total.cut_short |= scale > 1.0
        total.fetch_s += (decoding if data else time.perf_counter()) - begun
        total.decode_s += decode_s * scale
        for track, count in done.items():
            total.units[track] = total.units.get(track, 0.0) + count * scale

    def _whole(self, row: Mapping[str, Any], size: int, done: Mapping[str, int]) -> float:
        """How many times as long the whole item takes as the part that was decoded."""
        modality = row["modality"]
        if modality not in {"music", "video"}:
            return 1.0
        one = pa.table({"uri": pa.array([row["uri"]], pa.string()), "bytes": pa.array([size], pa.int64())})
        windows = float(estimated_seconds(one, modality)[0]) / self._plan.preprocessing.hop_s
        return max(
            1.0, windows * sum(tower in self._info.dims for tower in towers_of(modality)) / max(1, sum(done.values()))
        )

    def _unit_s(self, tower: str, contents: list[Any], until: float) -> float:
        """Seconds of one core for a unit; the processor's time, so that neither threads nor a busy machine count."""
        begun, first = time.process_time(), time.monotonic()
        self._model.embed(tower, contents[:1])
        one_s = time.process_time() - begun
        if time.monotonic() + (time.monotonic() - first) * len(contents) > until:
            return one_s
        begun = time.process_time()
        self._model.embed(tower, contents, batch_size=_BATCH)
        return (time.process_time() - begun) / len(contents)

    def _bytes_of(self, row: Mapping[str, Any]) -> bytes:
        if row["caption"] is not None:
            return str(row["caption"]).encode(errors="replace")
        return self._fetch(row["uri"], row["bytes"], self._limits.max_bytes)

    def _sample_rate(self) -> int:
        recorded = self._info.preprocessing.get("music", {}).get("sample_rate")
        return int(recorded or self._model.encoder("music").sample_rate or 0)

    @cached_property
    def _model(self) -> Predictor:
        from mmva.inference.engines import load_predictor, pack_bundle
        from mmva_platform.datasets.embedder import EncoderLoader

        return load_predictor(pack_bundle(self._bundle_dir), {}, self._storage, EncoderLoader.of(self._settings))


def picked(items: pa.Table, roots: AllowedRoots, count: int) -> Iterator[dict[str, Any]]:
    """At most `count` random rows whose media may be read, the same in every call; looks at ten times as many."""
    order = np.random.default_rng(_SEED).permutation(items.num_rows)[: 10 * count]
    found = 0
    for row in items.take(pa.array(order)).to_pylist():
        readable = row["caption"] is not None or (row["uri"] is not None and roots.allow(row["uri"]))
        if readable and found < count:
            found += 1
            yield row

"""One shard's items through a model: fetch, decode, embed, predict. Every item ends in one of two rows.

What is wrong with an item stays with that item: errors are caught per item, and a batch that fails is run again one by
one. Only storage that is away for everybody (after all retries) stops the shard; nothing of it is committed then.
Items of the same bytes are decoded and inferred once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from mmva.errors import MediaError, OperationFailed
from mmva.media.limits import Limits
from mmva_platform.annotation.commit import ShardResult
from mmva_platform.annotation.decoding import Decoder, Unit
from mmva_platform.annotation.item_errors import NOBODYS_FAULT, as_media_error, described, fetch_error
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.results import (
    Embedded,
    Item,
    Track,
    annotation_table,
    predict,
    quarantine,
    window_embeddings,
)
from mmva_platform.annotation.schema import WINDOW_EMBEDDING_SCHEMA, sha256_hex
from mmva_platform.storage import StorageUnavailable
from mmva_platform.storage.prefetch import THREADS, Request, prefetched

if TYPE_CHECKING:
    from mmva.model import MMVA
    from mmva.predictor import Predictor

Fetch = Callable[[str, int | None, int], bytes]
Progress = Callable[[str], None]

_BATCH_PIXELS: Final = 64_000_000  # decoded images that wait for a batch, at most some 200 MB
_REMEMBERED_BYTES: Final = 32 * 2**20  # embeddings of earlier shards' items, kept for the same bytes


class Annotator:
    """Annotates shards of a plan with a loaded model; the same shard gives the same rows, to rounding."""

    def __init__(
        self,
        model: MMVA | Predictor,
        plan: Plan,
        fetch: Fetch,
        *,
        batch_size: int = 16,
        limits: Limits | None = None,
        on_progress: Progress = lambda _stage: None,
    ) -> None:
        """Bind a model to a plan.

        Args:
            model: With its encoders.
            plan: Names the run and the windows.
            fetch: (URI, known size or None, largest size) -> bytes, from several threads; see Fetcher.
            batch_size: Images, windows or captions embedded at once; results do not depend on it.
            limits: What an item may ask for.
            on_progress: Told "load" (an encoder), "fetch", "decode" or "infer" when such a step begins; "fetch" only if
                there is something to wait for.
        """
        self._model, self._plan, self._fetch = model, plan, fetch
        self._batch_size, self._limits, self._on_progress = batch_size, limits or Limits(), on_progress
        self._loaded: set[str] = set()
        self._decoder = Decoder(model.dims, self._sample_rate, plan.preprocessing, self._limits)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="mmva-fetch")
        self._remembered: OrderedDict[tuple[str, str], Embedded] = OrderedDict()
        self._remembered_bytes = 0

    def annotate(self, shard: str, items: pa.Table) -> ShardResult:
        """Annotate a shard's items (ITEM_SCHEMA); rows stand in the items' order.

        Raises:
            StorageUnavailable: If storage does not answer; no fault of the item.
        """
        columns = (items.column(name).to_pylist() for name in ("id", "uri", "modality"))
        all_items = [Item(*row) for row in zip(*columns, strict=True)]
        passing = _Passing(self._model, self._batch_size, self._on_progress, self._load)
        firsts: dict[tuple[str, str], Item] = {}
        twins: list[tuple[Item, Item]] = []
        recalled = 0
        for item, data in self._fetched(all_items, items, passing):
            item.sha256 = sha256_hex(data)
            key = (str(item.modality), item.sha256)
            if key in firsts:
                twins.append((item, firsts[key]))
                continue
            firsts[key] = item
            item.embedded = self._remembered.get(key)
            if item.embedded is not None:
                self._remembered.move_to_end(key)
                recalled += 1
            else:
                passing.take(item, self._decoder.units(key[0], data))
        passing.finish()
        with passing.timed("heads"):
            predict(self._model, [item for item in firsts.values() if item.error is None])
            for item, first in twins:
                item.embedded, item.error = first.embedded, first.error
                item.va_2, item.curve = first.va_2, first.curve
            ok = [item for item in all_items if item.error is None]
            failed = [item for item in all_items if item.error is not None]
            keep = self._plan.keep_windows
            table = annotation_table(ok, self._model, self._plan, shard)
            kept = window_embeddings(ok) if keep else WINDOW_EMBEDDING_SCHEMA.empty_table()
        self._remember(firsts)
        same = recalled + sum(1 for item, _ in twins if item.error is None)
        work = {"media": len(ok) - same, "same bytes": same, "quarantined": len(failed)}
        rejected = quarantine(failed, self._plan, shard)
        return ShardResult(table, rejected, kept, work=work, seconds=passing.seconds)

    def _sample_rate(self) -> int:
        self._load("music")
        self._on_progress("decode")
        sample_rate = self._model.encoder("music").sample_rate
        assert sample_rate is not None
        return sample_rate

    def _load(self, track: str) -> None:
        """Load an encoder before it is used: that takes its time, and a failure is no item's error."""
        if track in self._loaded:
            return
        self._on_progress("load")
        try:
            self._model.encoder(track)
        except NOBODYS_FAULT:
            raise
        except Exception as error:
            raise OperationFailed(f"the {track} encoder cannot be loaded: {described(error)}") from error
        self._loaded.add(track)

    def _fetched(self, all_items: Sequence[Item], items: pa.Table, passing: _Passing) -> Iterator[tuple[Item, bytes]]:
        """Items with their bytes, in order; one that has none gets its error and is left out."""
        captions, sizes = items.column("caption").to_pylist(), items.column("bytes").to_pylist()
        requests: list[Request] = []
        ready: list[tuple[Item, bytes | None]] = []
        for item, caption, size in zip(all_items, captions, sizes, strict=True):
            item.error = self._decoder.refusal(item.modality)
            if item.error is not None:
                continue
            if caption is not None:
                ready.append((item, str(caption).encode(errors="replace")))
            elif item.uri is None:
                text = "the row has neither a uri nor, for captions, a text"
                item.error = MediaError("no-media", text, stage="catalog")
            else:
                ready.append((item, None))
                requests.append(Request(item.uri, size))
        futures = prefetched(lambda one: self._fetch(one.uri, one.size, self._limits.max_bytes), requests, self._pool)
        for item, text_bytes in ready:
            if text_bytes is not None:
                yield item, text_bytes
                continue
            future = next(futures)
            if not future.done():
                self._on_progress("fetch")
            try:
                with passing.timed("fetch"):
                    data = future.result()
            except StorageUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - a URI that no library foresaw
                item.error = fetch_error(error)
                continue
            del future  # or its bytes would live as long as their item's decoding
            yield item, data

    def _remember(self, firsts: dict[tuple[str, str], Item]) -> None:
        for key, item in firsts.items():
            if item.error is None and item.embedded is not None and key not in self._remembered:
                self._remembered[key] = item.embedded
                self._remembered_bytes += item.embedded.size
        while self._remembered_bytes > _REMEMBERED_BYTES:
            self._remembered_bytes -= self._remembered.popitem(last=False)[1].size


class _Passing:
    """A shard's units on their way through the encoders, in batches that reach across items; keeps the time."""

    def __init__(
        self, model: MMVA | Predictor, batch_size: int, on_progress: Progress, load: Callable[[str], None]
    ) -> None:
        self._model, self._batch_size, self._on_progress, self._load = model, batch_size, on_progress, load
        self._batches: dict[str, list[tuple[Item, Unit]]] = {}
        self._pixels = 0
        self._open: list[Item] = []
        self.seconds = dict.fromkeys(("fetch", "decode", "infer", "heads"), 0.0)

    def timed(self, stage: str) -> _Timed:
        """Counts the time of a block for a stage."""
        return _Timed(self.seconds, stage)

    def take(self, item: Item, units: Iterator[Unit]) -> None:
        """Decode an item and send its units on; after an error nothing of it counts."""
        item.embedded = Embedded()
        self._open.append(item)
        while item.error is None:
            self._on_progress("decode")
            try:
                with self.timed("decode"):
                    unit = next(units, None)
            except NOBODYS_FAULT:
                raise
            except Exception as error:  # noqa: BLE001 - decoders meet bytes that nobody foresaw
                item.error = as_media_error(error, "decode")
                return
            if unit is None:
                if not item.embedded.tracks:
                    item.error = MediaError("no-sound", "nothing that could be annotated was decoded")
                return
            self._add(item, unit)

    def finish(self) -> None:
        """Embed what still waits, and close the items."""
        for name in list(self._batches):
            self._flush(name)
        for item in self._open:
            for track in item.embedded.tracks.values() if item.embedded and item.error is None else ():
                track.close()

    def _add(self, item: Item, unit: Unit) -> None:
        assert item.embedded is not None
        item.embedded.tracks.setdefault(unit.track, Track())
        if unit.end_s:
            item.embedded.duration_s = max(unit.end_s, item.embedded.duration_s or 0.0)
        batch = self._batches.setdefault(unit.track, [])
        batch.append((item, unit))
        self._pixels += unit.pixels
        if len(batch) >= self._batch_size or (unit.pixels and self._pixels >= _BATCH_PIXELS):
            self._flush(unit.track)

    def _flush(self, track: str) -> None:
        batch = [(item, unit) for item, unit in self._batches.pop(track, ()) if item.error is None]
        if track == "image":
            self._pixels = 0
        if batch:
            with self.timed("infer"):
                self._infer(track, batch)

    def _infer(self, track: str, batch: Sequence[tuple[Item, Unit]]) -> None:
        self._load(track)
        self._on_progress("infer")
        try:
            contents = [unit.content for _, unit in batch]
            emb_BD = self._model.embed(track, contents, batch_size=self._batch_size)
        except Exception as error:  # noqa: BLE001 - an item's error must not cost its neighbours
            if len(batch) > 1:
                for single in batch:
                    self._infer(track, [single])
            else:
                batch[0][0].error = batch[0][0].error or as_media_error(error, "infer")
            return
        for (item, unit), emb_D in zip(batch, emb_BD, strict=True):
            assert item.embedded is not None
            item.embedded.tracks[track].starts_s.append(unit.start_s)
            item.embedded.tracks[track].embeddings.append(emb_D)


class _Timed:
    """perf_counter around a block; a class, because a generator costs ten times as much at a million items."""

    __slots__ = ("_begun", "_seconds", "_stage")

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._begun = perf_counter()

    def __exit__(self, *_exception: object) -> None:
        self._seconds[self._stage] += perf_counter() - self._begun

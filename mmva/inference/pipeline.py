"""The only path from bytes to embeddings: fetch, decode, batch across items, embed.

    pipeline = Pipeline(model.dims, model.encoder, preprocessing, fetch)
    predicted = predict(model, pipeline.embed(items))          # mmva.inference.heads

Every item becomes a row of either the embeddings or the errors. Items with the same bytes are embedded once.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

import pyarrow as pa

from mmva.errors import MediaError
from mmva.files import sha256_hex
from mmva.inference.batching import Batches, Encoders, Overlapped
from mmva.inference.causes import NOT_AN_ITEM, as_media_error
from mmva.inference.config import Preprocessing
from mmva.inference.decode import Decoder, Unit
from mmva.inference.fetching import THREADS, Fetch, Fetching, Progress
from mmva.inference.interleave import interleaved
from mmva.inference.items import Item, Media, embedding_table, error_table, items_of, refusal, window_table
from mmva.inference.stages import decoded_items
from mmva.inference.tables import Embedded
from mmva.media.limits import Limits
from mmva.models.predictor import ItemEncoder

REMEMBERED_BYTES: Final = 32 * 2**20  # embeddings of earlier calls, kept for items with the same bytes

Sources = Generator[tuple[Item, Iterator[Unit]], None, None]


@dataclass
class _Call:
    """State of one call: media by bytes, items that share media, and time by stage."""

    media: dict[tuple[str, str], tuple[Item, Media]] = field(default_factory=dict)
    shared: list[Item] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("fetch", "decode", "infer"), 0.0))


class Pipeline:
    """Embeds items. An item's embedding does not depend on its batch, except for rounding."""

    def __init__(
        self,
        towers: Collection[str],
        encoder: Callable[[str], ItemEncoder],
        preprocessing: Preprocessing,
        fetch: Fetch,
        *,
        batch_size: int = 16,
        limits: Limits | None = None,
        is_outage: Callable[[Exception], bool] = lambda _error: False,
        patience_s: float = 0.0,
        fetch_threads: int = THREADS,
        decode_threads: int = 0,
        on_progress: Progress = lambda _stage: None,
    ) -> None:
        """Set up a pipeline; encoders are loaded on first use.

        Args:
            towers: Modalities with an encoder.
            encoder: Tower -> its encoder; called once for each tower, with its first item.
            preprocessing: Windows, and the size of images.
            fetch: (URI, known size or None, most bytes) -> bytes; must be thread-safe.
            batch_size: Images, windows or captions embedded at once; results do not depend on it.
            limits: Limits of an item.
            is_outage: See Fetching.
            patience_s: See Fetching.
            fetch_threads: Requests in flight.
            decode_threads: Threads that decode and prepare while a GPU computes; 0 decodes in the caller's thread.
            on_progress: Called with "load", "fetch", "decode" or "infer" when such a step begins; "fetch" only if it
                has to wait.
        """
        self._batch_size, self._decode_threads, self._on_progress = batch_size, decode_threads, on_progress
        limits = limits or Limits()
        self._encoders = Encoders(encoder, on_progress)
        self._decoder = Decoder(towers, self._sample_rate, preprocessing, limits)
        self._fetching = Fetching(
            fetch,
            max_bytes=limits.max_bytes,
            is_outage=is_outage,
            patience_s=patience_s,
            threads=fetch_threads,
            on_progress=on_progress,
        )
        self._remembered: OrderedDict[tuple[str, str], Media] = OrderedDict()
        self._remembered_bytes = 0

    def embed(self, items: pa.Table, *, items_at_fault: bool = False) -> Embedded:
        """Embed items: columns id, uri, modality, and optionally caption (the text itself) and bytes (the known size).

        With `items_at_fault`, the environment is known to work, and a failure of all items is blamed on the items.
        Without results, raises EnvironmentFault if fetches or the encoder fail for every item, or the GPU is lost;
        OperationFailed if an encoder cannot be loaded; and the error of an outage that lasts longer than patience_s.
        Finished embeddings are kept, so a second call does not compute them again.
        """
        call = _Call()
        all_items = items_of(items)
        sources = self._fetched(all_items, call, items_at_fault=items_at_fault)
        return self._embedded(all_items, sources, call, items_at_fault=items_at_fault)

    def embed_decoded(self, decoded: pa.Table, *, items_at_fault: bool = False) -> Embedded:
        """Embed the items of a decode stage (DECODED_SCHEMA). Returns and raises as `embed`."""
        call = _Call()
        all_items, states = decoded_items(decoded)
        sources = self._staged(all_items, states, call, items_at_fault=items_at_fault)
        return self._embedded(all_items, sources, call, items_at_fault=items_at_fault)

    def embed_units(self, items: Sequence[Item], units: Sequence[Iterator[Unit]]) -> Embedded:
        """Embed items, each with sha256 or an error, whose units were decoded elsewhere, such as in child processes.

        `units` has those of each item; they are not read for an item with an error, and a MediaError that they raise
        becomes the item's error. Raises OperationFailed if an encoder cannot be loaded, or `units` raise it.
        """
        call = _Call()
        return self._embedded(items, self._staged(items, units, call, items_at_fault=True), call, items_at_fault=True)

    def _embedded(self, items: Sequence[Item], sources: Sources, call: _Call, *, items_at_fault: bool) -> Embedded:
        batches = Batches(self._encoders, self._batch_size, self._on_progress, items_at_fault=items_at_fault)
        streams = ((item, self._units(item, units, call)) for item, units in sources)
        try:
            with closing(sources), closing(interleaved(streams, self._decode_threads)) as units_of_all:
                for item, unit in units_of_all:
                    batches.add(item, unit)
            batches.finish()
        finally:
            self._remember(call, batches.pending())
        call.seconds["infer"] = batches.seconds
        good = [item for item in items if item.cause is None]
        return Embedded(
            ids=pa.array([item.id for item in items], pa.string()),
            rows=embedding_table(good),
            windows=window_table(good),
            errors=error_table([item for item in items if item.cause is not None]),
            same_bytes=pa.array([item.id for item in call.shared if item.cause is None], pa.string()),
            seconds=call.seconds,
        )

    def _fetched(self, items: Sequence[Item], call: _Call, *, items_at_fault: bool) -> Sources:
        """Fetch items, and yield their units."""
        for item in items:
            item.error = refusal(self._decoder, item)
        usable = [item for item in items if item.error is None]
        begun = perf_counter()
        for item, data in self._fetching.read(usable, items_at_fault=items_at_fault):
            call.seconds["fetch"] += perf_counter() - begun
            item.sha256 = sha256_hex(data)
            if self._is_new(item, call):
                yield item, self._decoder.units(str(item.modality), data)
            del data
            begun = perf_counter()

    def _staged(
        self,
        items: Sequence[Item],
        states: Sequence[Iterator[Unit] | bytes | None],
        call: _Call,
        *,
        items_at_fault: bool,
    ) -> Sources:
        """Yield the units of a decode stage's items, which are decoded there, decoded here, or fetched here."""
        later = []
        for item, state in zip(items, states, strict=True):
            if item.error is not None:
                continue
            if item.sha256 is None:
                later.append(item)
            elif self._is_new(item, call):
                assert state is not None, "the first item with these bytes contains them"
                yield item, self._decoder.units(str(item.modality), state) if isinstance(state, bytes) else state
        yield from self._fetched(later, call, items_at_fault=items_at_fault)

    def _is_new(self, item: Item, call: _Call) -> bool:
        """Set an item's media, shared with earlier items with the same bytes. Returns whether the bytes are new."""
        if item.key in call.media:
            item.media = call.media[item.key][1]
        elif item.key in self._remembered:
            item.media = self._remembered[item.key]
            self._remembered.move_to_end(item.key)
        else:
            item.media = Media()
            call.media[item.key] = (item, item.media)
            return True
        call.shared.append(item)
        return False

    def _units(self, item: Item, units: Iterator[Unit], call: _Call) -> Iterator[Unit]:
        """Yield the units of an item until it fails; with decode threads, prepared for the network."""
        media = item.media
        assert media is not None
        any_unit = False
        while media.error is None:
            self._on_progress("decode")
            begun = perf_counter()
            try:
                unit = next(units, None)
                if unit is not None:
                    unit = self._prepared(unit)
            except NOT_AN_ITEM:
                raise
            except Exception as error:  # noqa: BLE001 - hostile bytes raise anything
                media.error = as_media_error(error, "decode")
                return
            finally:
                call.seconds["decode"] += perf_counter() - begun
            if unit is None:
                if not any_unit:
                    media.error = MediaError("no-sound", "the file has nothing to embed")
                media.complete = True
                return
            any_unit = True
            yield unit

    def _prepared(self, unit: Unit) -> Unit:
        encoder = self._encoders(unit.track) if self._decode_threads else None
        return unit._replace(content=encoder.prepare(unit.content)) if isinstance(encoder, Overlapped) else unit

    def _sample_rate(self) -> int | None:
        rate = self._encoders("music").sample_rate
        self._on_progress("decode")
        return rate

    def _remember(self, call: _Call, pending: set[int]) -> None:
        for key, (item, media) in call.media.items():
            if media.complete and media.error is None and id(item) not in pending:
                self._remembered[key] = media
                self._remembered_bytes += media.size
        while self._remembered_bytes > REMEMBERED_BYTES:
            self._remembered_bytes -= self._remembered.popitem(last=False)[1].size

"""Embed the units of many items in full batches; an error affects only the item that causes it."""

import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmva.errors import EnvironmentFault, MediaError, OperationFailed
from mmva.inference.causes import NOT_AN_ITEM, as_media_error, described, is_device_fault
from mmva.inference.decode import Unit
from mmva.inference.fetching import Progress
from mmva.inference.items import Item, Track
from mmva.models.predictor import ItemEncoder

BATCH_PIXELS: Final = 64_000_000  # of images that wait for a batch: about 200 MB
_FAILING_ITEMS: Final = 4  # failures in a row, without a success between them, that show a fault of the environment

Batch = Sequence[tuple[Item, Unit]]


@runtime_checkable
class Overlapped(ItemEncoder, Protocol):
    """An encoder whose network runs while the next items are prepared."""

    def prepare(self, item: Any) -> Any:
        """The network's input for one decoded item; thread-safe."""

    def launch(self, prepared: Sequence[Any]) -> Any:
        """Start the network on prepared items."""

    def collect(self, launched: Any) -> NDArray[np.float32]:
        """Wait for a launch. Returns embeddings [N, D]."""


class Encoders:
    """Encoders by tower, each loaded on first use. A failure to load is not an item's error."""

    def __init__(self, load: Callable[[str], ItemEncoder], on_progress: Progress) -> None:
        self._load, self._on_progress = load, on_progress
        self._loaded: dict[str, ItemEncoder] = {}
        self._lock = threading.Lock()

    def __call__(self, track: str) -> ItemEncoder:
        """The encoder of a tower."""
        with self._lock:
            if track not in self._loaded:
                self._on_progress("load")
                try:
                    self._loaded[track] = self._load(track)
                except NOT_AN_ITEM:
                    raise
                except Exception as error:
                    raise OperationFailed(f"the {track} encoder cannot be loaded: {described(error)}") from error
            return self._loaded[track]


class _Launched(NamedTuple):
    track: str
    encoder: Overlapped
    batch: Batch
    handle: Any


class Batches:
    """Collects the units of one call into batches, embeds them, and appends the embeddings to the items' tracks."""

    def __init__(self, encoders: Encoders, batch_size: int, on_progress: Progress, *, items_at_fault: bool) -> None:
        self._encoders, self._batch_size, self._on_progress = encoders, batch_size, on_progress
        self._items_at_fault = items_at_fault
        self._waiting: dict[str, list[tuple[Item, Unit]]] = {}
        self._pixels = 0
        self._launched: _Launched | None = None
        self._failing: dict[str, set[str]] = {}
        self.seconds = 0.0

    def add(self, item: Item, unit: Unit) -> None:
        """Add a unit of an item; embed its batch if it is full."""
        assert item.media is not None
        item.media.tracks.setdefault(unit.track, Track())
        if unit.end_s:
            item.media.duration_s = max(unit.end_s, item.media.duration_s or 0.0)
        batch = self._waiting.setdefault(unit.track, [])
        batch.append((item, unit))
        if isinstance(unit.content, Image.Image):
            self._pixels += unit.content.width * unit.content.height
        if len(batch) >= self._batch_size or (unit.track == "image" and self._pixels >= BATCH_PIXELS):
            self._flush(unit.track)

    def finish(self) -> None:
        """Embed the waiting units."""
        for track in list(self._waiting):
            self._flush(track)
        self._collect()

    def pending(self) -> set[int]:
        """id() of the items with units that are not embedded yet."""
        waiting = [*self._waiting.values(), self._launched.batch if self._launched else ()]
        return {id(item) for batch in waiting for item, _ in batch}

    def _flush(self, track: str) -> None:
        batch = [(item, unit) for item, unit in self._waiting.pop(track, ()) if item.cause is None]
        if track == "image":
            self._pixels = 0
        if not batch:
            return
        encoder = self._encoders(track)
        self._on_progress("infer")
        begun = perf_counter()
        self._embed(track, encoder, batch)
        self.seconds += perf_counter() - begun

    def _embed(self, track: str, encoder: ItemEncoder, batch: Batch) -> None:
        contents = [unit.content for _, unit in batch]
        try:
            if isinstance(encoder, Overlapped):
                launched = _Launched(track, encoder, batch, encoder.launch(contents))
            else:
                emb_BD = encoder.encode(contents, batch_size=self._batch_size)
        except Exception as error:  # noqa: BLE001 - an encoder may raise anything
            self._collect()
            self._embed_one_by_one(track, encoder, batch, error)
            return
        if isinstance(encoder, Overlapped):
            self._collect()
            self._launched = launched
        else:
            self._store(track, batch, emb_BD)

    def _collect(self) -> None:
        """Store the embeddings of the last launched batch."""
        if self._launched is None:
            return
        launched, self._launched = self._launched, None
        try:
            emb_BD = launched.encoder.collect(launched.handle)
        except Exception as error:  # noqa: BLE001 - the GPU reports the errors of a launch here
            self._embed_one_by_one(launched.track, launched.encoder, launched.batch, error)
        else:
            self._store(launched.track, launched.batch, emb_BD)

    def _embed_one_by_one(self, track: str, encoder: ItemEncoder, batch: Batch, error: Exception) -> None:
        """Embed the units of a failed batch one by one, to find those that fail."""
        for item, unit in batch:
            if item.cause is not None:
                continue
            if len(batch) == 1:
                self._fail(track, item, error)
                continue
            try:
                if isinstance(encoder, Overlapped):
                    emb_1D = encoder.collect(encoder.launch([unit.content]))
                else:
                    emb_1D = encoder.encode([unit.content], batch_size=1)
            except Exception as found:  # noqa: BLE001 - an item's error must not cost the others
                self._fail(track, item, found)
            else:
                self._store(track, [(item, unit)], emb_1D)

    def _fail(self, track: str, item: Item, error: Exception) -> None:
        """Give an item its error. Raises EnvironmentFault if the environment is at fault."""
        if is_device_fault(error):
            raise EnvironmentFault(f"infer: the GPU failed at {item.uri or item.id}: {described(error)}") from error
        assert item.media is not None
        item.media.error = as_media_error(error, "infer")
        if isinstance(error, MediaError) or self._items_at_fault:
            return
        failing = self._failing.setdefault(track, set())
        failing.add(item.uri or item.id)
        if len(failing) >= _FAILING_ITEMS:
            raise EnvironmentFault(
                f"infer: the {track} encoder failed for {len(failing)} items in a row, also one by one, "
                f"the last is {item.uri or item.id}: {described(error)}"
            ) from error

    def _store(self, track: str, batch: Batch, emb_BD: NDArray[np.float32]) -> None:
        self._failing.pop(track, None)
        for (item, unit), emb_D in zip(batch, np.asarray(emb_BD, np.float32), strict=True):
            assert item.media is not None
            item.media.tracks[track].starts_s.append(unit.start_s)
            item.media.tracks[track].embeddings.append(emb_D)

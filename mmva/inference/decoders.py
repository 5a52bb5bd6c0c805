"""A pool of child processes that decode: an item that kills or hangs its decoder does not affect other items.

    pool = DecoderPool(2, item_timeout_s=20)
    units = pool.decode(DecodeJob(spec, "image", data, most=16 * 2**20))     # MediaError "killed-worker", "timed-out"

The children have no model, credentials or network connections; they receive bytes and return decoded units.
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import LifoQueue
from typing import Final

from mmva.errors import OperationFailed
from mmva.inference.config import Preprocessing
from mmva.inference.decode import Decoder, Unit, unit_bytes
from mmva.inference.isolation import Isolated
from mmva.media.limits import Limits

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S: Final = 120.0  # to start a process, on a machine that may be busy


class TooLongError(Exception):
    """An item has more decoded bytes than its job allows."""


@dataclass(frozen=True)
class DecodeSpec:
    """A model's settings for Decoder."""

    towers: tuple[str, ...]  # modalities that the model has a tower for
    sample_rate: int | None  # of music, in Hz; None if there is no music
    preprocessing: Preprocessing
    limits: Limits  # of an item

    def decoder(self) -> Decoder:
        """Make a decoder for this model; cheap."""
        return Decoder(self.towers, lambda: self.sample_rate, self.preprocessing, self.limits)


@dataclass(frozen=True)
class DecodeJob:
    """An item for a child. `most` limits its decoded bytes; None sets no limit."""

    spec: DecodeSpec
    modality: str
    data: bytes
    most: int | None = None


class DecoderPool:
    """Child processes with one item at a time each. Thread-safe; calls wait for a free child."""

    def __init__(self, size: int, item_timeout_s: float, load_timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Start the children in the background. The limits are for an item's next unit and the start of a child."""
        self._children = [Isolated(_make, item_timeout_s, load_timeout_s, deaths_allowed=1) for _ in range(size)]
        self._idle: LifoQueue[Isolated] = LifoQueue()
        for child in self._children:
            self._restart(child)

    def close(self) -> None:
        """End the children, when no call is running."""
        for _ in self._children:
            self._idle.get().close()

    def decode(self, job: DecodeJob) -> list[Unit]:
        """All units of an item.

        Raises MediaError if the item is unusable, with "killed-worker" or "timed-out" if it ended its child;
        TooLongError if it has more decoded bytes than the job allows; OperationFailed if no child starts.
        """
        return list(self.stream(job))

    def stream(self, job: DecodeJob) -> Iterator[Unit]:
        """Yield the units of an item as they are decoded. It occupies a child until it ends. Raises as decode."""
        with self._child() as child:
            yield from child.stream(job)

    @contextmanager
    def _child(self) -> Iterator[Isolated]:
        child = self._idle.get()
        try:
            yield child
        finally:
            if child.running:
                self._idle.put(child)
            else:
                self._restart(child)

    def _restart(self, child: Isolated) -> None:
        """Start a child in a thread, so that the item that ended the previous child does not wait."""

        def start() -> None:
            try:
                child.start()
            except OperationFailed as error:  # the next item tries again, and reports it
                logger.error("decoder: %s", error)  # noqa: TRY400 - one line
            self._idle.put(child)

        threading.Thread(target=start, name="mmva-decoder", daemon=True).start()


def _make() -> Callable[[DecodeJob], Generator[Unit, None, None]]:
    """Runs in the child."""
    return _units


def _units(job: DecodeJob) -> Generator[Unit, None, None]:
    held = 0
    for unit in job.spec.decoder().units(job.modality, job.data):
        held += unit_bytes(unit)
        if job.most is not None and held > job.most:
            raise TooLongError
        yield unit

"""A run's checkpoints in storage: whole or absent, checked when read, the last two and the best ones kept.

A file's name is its place in time and its digest: <epochs done>-<steps of the next>-<sha256[:16]>.pt. A file whose
bytes are not those of its name is damaged; reading goes on with the one before and says so.
"""

from __future__ import annotations

import logging
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mmva.errors import CheckFailed
from mmva_platform.datasets.schema import sha256_of
from mmva_platform.storage import Storage, StorageNotFound
from mmva_platform.training.checkpoint import read_state

log = logging.getLogger(__name__)
_NAME = re.compile(r"(\d{6})-(\d{9})-([0-9a-f]{16})\.pt")
_LAST: Final = 2  # one to go on from, one in case that is damaged


class Saved(NamedTuple):
    """One file: epochs done, steps done of the next epoch, first digits of its digest."""

    epoch: int
    done: int
    digest: str

    @property
    def name(self) -> str:
        """The file's."""
        return f"{self.epoch:06d}-{self.done:09d}-{self.digest}.pt"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        storage: Their folder.
        keep: How many of the best epochs to keep.
        metric: Which validation metric says so; the smallest is best.
    """

    storage: Storage
    keep: int
    metric: str

    def saved(self) -> list[Saved]:
        """What is there, oldest first; whether it is whole shows when it is read."""
        found = [_NAME.fullmatch(entry.path) for entry in self.storage.list()]
        return sorted(Saved(int(match[1]), int(match[2]), match[3]) for match in found if match)

    def save(self, data: bytes, *, epoch: int, done: int, history: Sequence[Mapping[str, Any]]) -> None:
        """Write one, then remove those that nobody will want: neither among the last nor the end of a best epoch."""
        self.storage.write(Saved(epoch, done, sha256_of(data)[:16]).name, data)
        saved = self.saved()
        best = {row["epoch"] + 1 for row in self._best_first(history)[: self.keep]}
        for old in saved[:-_LAST]:
            if old.done > 0 or old.epoch not in best:
                self.storage.delete(old.name)

    def read(self, saved: Saved) -> dict[str, Any]:
        """One file's content.

        Raises:
            CheckFailed: If it is gone, or not what was written.
        """
        try:
            data = self.storage.read(saved.name)
            if sha256_of(data)[:16] == saved.digest:
                return read_state(data)
        except (StorageNotFound, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckFailed(f"{self.storage.join(saved.name)}: does not load ({type(error).__name__})") from error
        raise CheckFailed(f"{self.storage.join(saved.name)}: is damaged, its bytes are not those that were written")

    def latest(self) -> tuple[Saved, dict[str, Any]] | None:
        """The last whole checkpoint and its content; None when there is none, whole or not."""
        saved = self.saved()
        for candidate in reversed(saved):
            try:
                payload = self.read(candidate)
            except CheckFailed as error:
                log.warning("checkpoint: %s; going back to the one before it", error)
            else:
                return candidate, payload
        if saved:
            log.warning("checkpoint: none of the %d is whole; the run begins anew", len(saved))
        return None

    def best(self, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Content of the end of the best epoch; of the next best that is whole, if that is damaged.

        Raises:
            CheckFailed: If no epoch's end is whole.
        """
        ends = {saved.epoch: saved for saved in self.saved() if saved.done == 0}
        for row in self._best_first(history):
            if row["epoch"] + 1 in ends:
                try:
                    return self.read(ends[row["epoch"] + 1])
                except CheckFailed as error:
                    log.warning("checkpoint: %s; taking the next best epoch", error)
        raise CheckFailed(f"{self.storage.uri}: no whole checkpoint of a finished epoch; train anew")

    def _best_first(self, history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Rows by metric; what diverged comes last."""
        return sorted(history, key=lambda row: row[self.metric] if math.isfinite(row[self.metric]) else math.inf)

"""A lease in storage, which its holder renews, so that only one runner is active.

`<jobs>/lease/000001.json`, 000002.json and so on are each written once; the highest one is the lease. A waiting process
takes over when it has seen the same number for a whole term by its own clock, so clocks need not agree.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from time import monotonic
from typing import Final

from mmva_platform.storage import Storage, StorageNotFound

TERM_S: Final = 15.0
_FILE: Final = re.compile(r"lease/(\d{6,})\.json")


class Lease:
    """The right to run the queue's jobs."""

    def __init__(self, storage: Storage, clock: Callable[[], float] = monotonic) -> None:
        self._storage, self._clock = storage, clock
        self._holder = uuid.uuid4().hex
        self._seen, self._since = 0, clock()
        self._until: float | None = None  # the end of the term, if held

    def held(self) -> bool:
        """Take the lease if it is free, or renew it after a third of its term; returns whether it is held now."""
        now = self._clock()
        if self._until is not None and now < self._until - 2 / 3 * TERM_S:
            return True
        numbers = self._numbers()
        newest = max(numbers, default=0)
        if newest != self._seen:
            self._seen, self._since = newest, now
        holder = self._holder_of(newest)
        free = holder is None or holder == self._holder or now - self._since > TERM_S
        self._until = now + TERM_S if free and self._take(newest + 1, self._holder) else None
        if self._until is not None:
            self._seen, self._since = newest + 1, now
            for number in numbers:  # not the previous one, which another runner may be reading
                if number < newest:
                    self._storage.delete(_path(number))
        return self._until is not None

    def release(self) -> None:
        """Give up the lease, so that the next runner need not wait for the end of the term."""
        if self._until is not None:
            self._take(self._seen + 1, None)
        self._until = None

    def _numbers(self) -> list[int]:
        found = (_FILE.fullmatch(entry.path) for entry in self._storage.list("lease/"))
        return [int(match[1]) for match in found if match]

    def _holder_of(self, number: int) -> str | None:
        """The holder of a number; None if it was released or does not exist."""
        if not number:
            return None
        try:
            holder: str | None = json.loads(self._storage.read(_path(number)))["holder"]
        except (StorageNotFound, ValueError, KeyError, TypeError):
            return "unknown"  # wait for the end of the term
        return holder

    def _take(self, number: int, holder: str | None) -> bool:
        return self._storage.put_if_absent(_path(number), json.dumps({"holder": holder}).encode())


def _path(number: int) -> str:
    return f"lease/{number:06d}.json"

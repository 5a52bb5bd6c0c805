"""Items that were in work when a model replica died. They are tried again in a process that may die of them, and the
verdict on those that kill it is remembered: the same bytes cost one replica once, not one a request.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from mmva_platform.serving.services import ItemRequest, Row

_SUSPECTED_S: Final = 600.0
_CONVICTED_S: Final = 3600.0
_MOST: Final = 10_000
DEADLY: Final = frozenset({"killed-worker", "timed-out"})


class Suspects:
    """Remembers items by what they are, not by whose they are."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()
        self._verdicts: OrderedDict[str, tuple[float, Row]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._until or self._verdicts)

    def suspect(self, items: Sequence[ItemRequest]) -> None:
        """Items whose replica died; any of them may have done it."""
        for item in items:
            self._until[identity(item)] = self._clock() + _SUSPECTED_S
        while len(self._until) > _MOST:
            self._until.popitem(last=False)

    def suspected(self, item: ItemRequest) -> bool:
        """Whether an item is to be tried apart."""
        return self._until.get(identity(item), 0.0) > self._clock()

    def judge(self, items: Sequence[ItemRequest], rows: Sequence[Row]) -> None:
        """What became of suspects that were tried apart."""
        for item, row in zip(items, rows, strict=True):
            key = identity(item)
            self._until.pop(key, None)
            if row.get("error", {}).get("code") in DEADLY:
                self._verdicts[key] = (self._clock() + _CONVICTED_S, row)
        while len(self._verdicts) > _MOST:
            self._verdicts.popitem(last=False)

    def verdict(self, item: ItemRequest) -> Row | None:
        """The row of an item that is known to be deadly, under the item's own id."""
        until, row = self._verdicts.get(identity(item), (0.0, {}))
        return {**row, "id": item["id"]} if until > self._clock() else None


def identity(item: ItemRequest) -> str:
    """What decides how an item decodes: its bytes, or where they are read from."""
    if item["data"] is not None:
        return f"{item['modality']}:{hashlib.sha256(item['data']).hexdigest()}"
    return json.dumps([item["modality"], item["uri"], item["caption"]])

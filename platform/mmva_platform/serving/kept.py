"""Things that are costly to make of a published annotation: its index, its report."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from mmva_platform.annotation.table import latest_version
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

_KEPT: Final = 4


class Kept:
    """Remembers what was made of the last few published annotations, until another version of one is published."""

    def __init__(self, make: Callable[[str], Any], settings: Settings) -> None:
        self._make, self._settings = make, settings
        self._kept: OrderedDict[tuple[str, int | None], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, uri: str) -> Any:
        """What is made of a published annotation. UsageError if it is not published."""
        storage = open_storage(uri, self._settings.storage)
        key = (storage.uri, latest_version(storage))
        with self._lock:  # two that ask at once wait for one
            if key not in self._kept:
                self._kept[key] = self._make(uri)
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

"""What is costly to make of a published annotation (its index, its report), kept until another version is published."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from mmva_platform.annotation.table.delta import latest_version
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

_KEPT: Final = 4


class AnnotationCache:
    """Remembers what was made of the last few annotations. Making one never delays what another one needs."""

    def __init__(self, make: Callable[[str], Any], settings: Settings) -> None:
        self._make, self._settings = make, settings
        self._kept: OrderedDict[tuple[str, int | None], Future[Any]] = OrderedDict()
        self._lock = threading.Lock()  # of the dictionary alone

    def __call__(self, uri: str) -> Any:
        """What is made of a published annotation; callers of the same one share the work. UsageError if there is none.

        Blocks while it is made.
        """
        storage = open_storage(uri, self._settings.storage)
        key = (storage.uri, latest_version(storage))
        with self._lock:
            future = self._kept.get(key)
            is_new = future is None
            if future is None:
                future = self._kept[key] = Future()
                for old in [one for one in self._kept if one[0] == key[0] and one != key]:
                    del self._kept[old]  # earlier versions
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        if is_new:
            try:
                future.set_result(self._make(uri))
            except BaseException as error:  # noqa: BLE001 - all that wait for it get it
                with self._lock:
                    self._kept.pop(key, None)
                future.set_exception(error)
        return future.result()

"""A cache for objects made from published annotations (index, report), until another version is published."""

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
    """Keeps the objects of the last few annotations. Making one does not delay requests for others."""

    def __init__(self, make: Callable[[str], Any], settings: Settings) -> None:
        self._make, self._settings = make, settings
        self._kept: OrderedDict[tuple[str, int | None], Future[Any]] = OrderedDict()
        self._lock = threading.Lock()  # guards only the dictionary

    def __call__(self, uri: str) -> Any:
        """The object of a published annotation; concurrent callers share the work and wait for it.

        Raises UsageError if there is no such annotation.
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
            except BaseException as error:  # noqa: BLE001 - raised in every waiting call
                with self._lock:
                    self._kept.pop(key, None)
                future.set_exception(error)
        return future.result()

"""A limit on each step of an item, for decoders that hang in native code: only the end of the process stops them."""

import faulthandler
import sys
from time import monotonic
from typing import Self


class TimeLimit:
    """Ends the process if a step takes too long, with a traceback on stderr.

    Fetching is not timed, because storage has its own limits; nor is the loading of an encoder, which may download.
    """

    def __init__(self, limit_s: float) -> None:
        """Bind to a limit in seconds; it applies inside a `with` block."""
        self._limit_s, self._begun, self._armed = limit_s, 0.0, False

    def __enter__(self) -> Self:
        return self

    def step(self, stage: str) -> None:
        """Note that a step begins. Arming costs a thread, so steps in quick succession share one."""
        if stage in {"fetch", "load"}:
            self._stop()
        elif not self._armed or monotonic() - self._begun > min(1.0, self._limit_s / 10):
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=sys.__stderr__ or 2)
            self._begun, self._armed = monotonic(), True

    def __exit__(self, *_exception: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._armed:
            faulthandler.cancel_dump_traceback_later()
            self._armed = False

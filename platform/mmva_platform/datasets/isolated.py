"""A function that runs in a child process, one item at a time, for items that may kill or hang their process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final, Self

from mmva.errors import MediaError, OperationFailed

_DEATHS_ALLOWED: Final = 2


class Isolated:
    """Calls a function in a child process; only the item at which the child dies or hangs fails.

    Use it as a context manager: the child ends with the block, and with this process.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], item_timeout_s: float, load_timeout_s: float) -> None:
        """Start nothing yet.

        Args:
            make: Picklable; called once in each child, gives the function.
            item_timeout_s: Limit of one call.
            load_timeout_s: Limit for starting a child and for `make`.
        """
        self._make, self._item_timeout_s, self._load_timeout_s = make, item_timeout_s, load_timeout_s
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._end()

    def __call__(self, item: Any) -> Any:
        """The function's result for a picklable item.

        Raises:
            MediaError: "timed-out", or "killed-worker" if the child died twice; else as the function raises it.
            OperationFailed: If the child does not start.
        """
        for _ in range(_DEATHS_ALLOWED):
            pipe = self._pipe or self._start()
            try:
                pipe.send(item)
                if not pipe.poll(self._item_timeout_s):
                    self._end()
                    raise MediaError("timed-out", f"not finished after {self._item_timeout_s:g} s")
                result, error = pipe.recv()
            except (EOFError, OSError):
                self._end()
                continue
            if error is not None:
                raise error
            return result
        raise MediaError("killed-worker", f"its process died {_DEATHS_ALLOWED} times at it")

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_child, args=(theirs, self._make), daemon=True)
        self._process.start()
        theirs.close()
        try:
            if not self._pipe.poll(self._load_timeout_s):
                raise OperationFailed(f"an isolated process is not ready after {self._load_timeout_s:g} s")
            error = self._pipe.recv()
        except (EOFError, OSError):
            raise OperationFailed("an isolated process died before its first item") from None
        if error is not None:
            raise error
        return self._pipe

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _child(pipe: Connection, make: Callable[[], Callable[[Any], Any]]) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            function = make()
        except Exception as error:  # noqa: BLE001 - the parent raises it
            pipe.send(error)
            return
        pipe.send(None)
        while True:
            item = pipe.recv()
            try:
                pipe.send((function(item), None))
            except Exception as error:  # noqa: BLE001 - the parent raises it
                pipe.send((None, error))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)

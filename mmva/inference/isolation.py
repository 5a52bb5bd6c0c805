"""Process one item at a time in a child process. If the child dies or hangs, the item fails, not the caller.

    with Isolated(make, item_timeout_s=120, load_timeout_s=300) as isolated:
        result = isolated(item)           # MediaError "killed-worker" or "timed-out" if the item is at fault
        for part in isolated.stream(item): ...              # the same for a function that yields

`make` runs in the child and returns the function to call with each item; only the child loads its data. `make`, items
and results must be picklable. A function that calls `report_step` is timed step by step.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import monotonic
from typing import Any, Final, Self

from mmva.errors import MediaError, OperationFailed
from mmva.inference.causes import described

logger = logging.getLogger(__name__)
_DEATHS_ALLOWED: Final = 2  # the first may have another reason, such as too little memory
_ORPHAN_LIMIT: Final = 2  # a child that exceeds its time limit by this factor ends itself
_child: _Child | None = None


class TimeLimit:
    """Ends the process, with a traceback on stderr, if a step takes too long.

    It does not time fetching, because storage has its own limits, nor loading an encoder, which may download it.
    """

    def __init__(self, limit_s: float) -> None:
        """Set the limit in seconds; it applies inside a `with` block."""
        self._limit_s, self._begun, self._armed = limit_s, 0.0, False

    def __enter__(self) -> Self:
        return self

    def step(self, stage: str) -> None:
        """Note that a step begins. The timer starts a thread, so steps in quick succession share one."""
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


def report_step(stage: str) -> None:
    """Report to the caller of `Isolated` that a step of the item begins ("load", "fetch", "decode", "infer").

    The time limit starts again; for "load" it is load_timeout_s. Does nothing outside of such a child.
    """
    if _child is not None:
        _child.step(stage)


class _ChildLostError(Exception):
    """The child died, or did not answer in time (`hung`)."""

    def __init__(self, *, hung: bool) -> None:
        super().__init__("hung" if hung else "died")
        self.hung = hung


class Isolated:
    """Calls a function in a child process, which is restarted after an item that ended it."""

    def __init__(
        self,
        make: Callable[[], Callable[[Any], Any]],
        item_timeout_s: float,
        load_timeout_s: float,
        *,
        deaths_allowed: int = _DEATHS_ALLOWED,
    ) -> None:
        """Set up the function; the child starts with the first item, or with `start`.

        `make` is called once in each child and returns the function to call with each item. `item_timeout_s` limits the
        time without a reported step, `load_timeout_s` that of `make` or a step "load". An item that ends its process
        `deaths_allowed` times gets the error.
        """
        self._make, self._deaths_allowed = make, deaths_allowed
        self._item_timeout_s, self._load_timeout_s = item_timeout_s, load_timeout_s
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._stage = "load"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    @property
    def running(self) -> bool:
        """Whether a child is ready for an item."""
        return self._pipe is not None

    def start(self) -> None:
        """Start the child now. Raises OperationFailed if it cannot load."""
        try:
            if not self.running:
                self._start()
        except _ChildLostError as lost:
            self.close()
            self._raise_for(lost)

    def stream(self, item: Any) -> Iterator[Any]:
        """Yield what the function yields for an item, which is tried once.

        If the caller stops early, the child ends. Raises like a call, possibly after some parts.
        """
        finished = False
        try:
            self._send(item)
            while (message := self._message())[0] == "part":
                yield message[1]
            finished = True
        except _ChildLostError as lost:
            self._raise_for(lost)
            raise MediaError("killed-worker", "its process died", stage=self._stage) from lost
        except Exception:
            finished = True  # raised by the function: the child can take the next item
            raise
        finally:
            if not finished:
                self.close()

    def __call__(self, item: Any) -> Any:
        """The function's result for an item.

        Raises MediaError "timed-out" if the item takes too long without a step, or "killed-worker" if it ends its
        process `deaths_allowed` times; OperationFailed if the child dies or hangs while loading, or hangs while
        fetching; and any error of `make` or the function.
        """
        for _ in range(self._deaths_allowed):
            try:
                self._send(item)
                return self._message()[1]
            except _ChildLostError as lost:
                self.close()
                logger.warning("the process for single items %s at %r", "hangs" if lost.hung else "died", self._stage)
                self._raise_for(lost)
        raise MediaError("killed-worker", f"its process died {self._deaths_allowed} times", stage=self._stage)

    def _raise_for(self, lost: _ChildLostError) -> None:
        """Raises unless the item should be tried again."""
        if self._stage == "load":
            state = f"does not load in {self._load_timeout_s:g} s" if lost.hung else "dies while it loads"
            raise OperationFailed(f"the process for single items {state}") from lost
        if lost.hung and self._stage == "fetch":
            raise OperationFailed(f"no answer while fetching for {self._item_timeout_s:g} s") from lost
        if lost.hung:
            raise MediaError("timed-out", f"no progress for {self._item_timeout_s:g} s", stage=self._stage) from lost

    def _send(self, item: Any) -> None:
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        self._stage = "decode"
        try:
            self._pipe.send(item)
        except ConnectionError as error:
            raise _ChildLostError(hung=False) from error

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (self._make, theirs, _ORPHAN_LIMIT * self._item_timeout_s)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._stage = "load"
        self._process.start()
        theirs.close()
        try:
            self._message()
        except Exception:
            self.close()
            raise

    def _message(self) -> tuple[str, Any]:
        """The child's next "part" or "result". Notes steps before it, and raises errors."""
        assert self._pipe is not None
        while True:
            if not self._pipe.poll(self._load_timeout_s if self._stage == "load" else self._item_timeout_s):
                raise _ChildLostError(hung=True)
            try:
                kind, value = self._pipe.recv()
            except (EOFError, ConnectionError) as error:
                raise _ChildLostError(hung=False) from error
            if kind == "step":
                self._stage = value
            elif kind == "error":
                raise value
            else:
                return kind, value


class _Child:
    """The child's side: answers over the pipe, and ends itself if it takes far too long."""

    def __init__(self, pipe: Connection, limit_s: float) -> None:
        self._pipe, self._limit = pipe, TimeLimit(limit_s)

    def step(self, stage: str) -> None:
        self._limit.step(stage)
        self._pipe.send(("step", stage))

    @contextlib.contextmanager
    def answering(self) -> Iterator[Callable[[Any], None]]:
        """Answer with the value that the block passes to the callable, or with the error that it raises."""
        try:
            with self._limit:
                yield self._answer
        except Exception as error:  # noqa: BLE001 - raised again by the caller
            try:
                self._pipe.send(("error", error))
            except Exception:  # noqa: BLE001 - an error that cannot be pickled
                self._pipe.send(("error", RuntimeError(described(error))))

    def _answer(self, value: Any) -> None:
        if isinstance(value, Generator):
            for part in value:
                self.step("decode")
                self._pipe.send(("part", part))
            value = None
        self._pipe.send(("result", value))


def _serve(make: Callable[[], Callable[[Any], Any]], pipe: Connection, limit_s: float) -> None:
    """Run in the child: make the function, then process items until the pipe closes."""
    global _child  # noqa: PLW0603 - report_step cannot get the pipe as an argument
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _child = _Child(pipe, limit_s)
    function = None
    with _child.answering() as answer:
        function = make()
        answer(None)
    while function is not None:
        try:
            item = pipe.recv()
        except EOFError:  # the caller closed the pipe
            return
        with _child.answering() as answer:
            _child.step("decode")
            answer(function(item))


def _die_with_parent() -> None:
    """End this process when its parent ends, even if the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

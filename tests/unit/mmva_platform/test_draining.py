"""SIGTERM is a request, and a second one is not."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mmva_platform.draining import drain_on_sigterm


def test_the_first_asks_and_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with drain_on_sigterm() as stopping:
        assert not stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping()
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_nothing_is_changed() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with drain_on_sigterm() as stopping:
            seen.extend([stopping(), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, before]

"""Waiting while storage gives no answer."""

from __future__ import annotations

import pytest

from mmva_platform.storage import StorageUnavailable
from mmva_platform.storage.base import retry_while_unavailable


class Away:
    def __init__(self, failures: int) -> None:
        self.failures, self.now = failures, 0.0

    def __call__(self) -> str:
        if self.failures:
            self.failures -= 1
            raise StorageUnavailable("no answer")
        return "here"

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_storage_that_comes_back_costs_a_wait_and_one_that_does_not_ends_the_run() -> None:
    back = Away(4)
    assert retry_while_unavailable(back, 120, "x", back.sleep, lambda: back.now) == "here"
    assert 0 < back.now < 120
    gone = Away(10_000)
    with pytest.raises(StorageUnavailable):
        retry_while_unavailable(gone, 120, "x", gone.sleep, lambda: gone.now)
    assert 120 <= gone.now < 140

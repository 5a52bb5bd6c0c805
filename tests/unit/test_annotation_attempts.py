"""Marks of begun shards, and patience with storage that is away."""

from pathlib import Path

import pytest

from mmva_platform.annotation.attempts import begin_attempt, count_given_up, mark_given_up, patiently
from mmva_platform.storage import StorageUnavailable, open_storage


def test_attempts_of_a_shard_are_counted(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    assert [begin_attempt(storage, "000001") for _ in range(3)] == [0, 1, 2]
    assert begin_attempt(storage, "000002") == 0


def test_given_up_items_are_counted_once_and_are_no_attempts(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for number in (4, 7, 4):
        mark_given_up(storage, "000001", number)
    assert count_given_up(storage) == 2
    assert begin_attempt(storage, "000001") == 0


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
    assert patiently(back, 120, "x", back.sleep, lambda: back.now) == "here"
    assert 0 < back.now < 120
    gone = Away(10_000)
    with pytest.raises(StorageUnavailable):
        patiently(gone, 120, "x", gone.sleep, lambda: gone.now)
    assert 120 <= gone.now < 140

"""When ranks save, stop and look whether a node is to go: together, or one waits for the others for ever."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mmva_platform.training import checkpoint, worker
from mmva_platform.training.loop import Wishes, World
from mmva_platform.training.worker import Keeper


class TwoRanks:
    """Two keepers, a clock, and what they did; steps go as the training loop makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every_s: float) -> None:
        import ray.train

        self.now, self.draining, self.saves = 0.0, False, 0
        self.looks = [0, 0]
        self.rank = 0
        monkeypatch.setattr(worker.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(ray.train, "get_preemption_info", self._look)
        monkeypatch.setattr(World, "all", lambda _self, value: [value, value])
        monkeypatch.setattr(checkpoint, "state_bytes", lambda _state, _rng: b"")
        monkeypatch.setattr(Keeper, "_listen", lambda _self: None)
        self.keepers = [Keeper(self, World(rank, 2), every_s, None) for rank in (0, 1)]  # type: ignore[arg-type]

    def save(self, _data: bytes, **_where: Any) -> None:
        self.saves += 1

    def step(self, seconds: float) -> None:
        self.now += seconds
        asked = [keeper.wishes() for keeper in self.keepers]
        together = Wishes(*(any(getattr(wish, name) for wish in asked) for name in ("stop", "save", "look")))
        for rank, keeper in enumerate(self.keepers):
            self.rank = rank
            keeper.after_step(SimpleNamespace(epoch=0, done=1, history=[]), together)  # type: ignore[arg-type]

    def _look(self) -> object:
        self.looks[self.rank] += 1
        return object() if self.draining else None


@pytest.mark.parametrize("every_s", [0.0, 0.7, 60.0])
def test_no_rank_looks_alone(monkeypatch: pytest.MonkeyPatch, every_s: float) -> None:
    ranks = TwoRanks(monkeypatch, every_s)
    for _ in range(100):
        ranks.step(0.25)
        assert ranks.looks[0] == ranks.looks[1]
    assert ranks.looks[0] == 25  # once a second, and not every step
    assert ranks.saves == {0.0: 100, 0.7: 33, 60.0: 0}[every_s]


def test_a_node_that_is_to_go_is_a_reason_to_save_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = TwoRanks(monkeypatch, 60.0)
    ranks.step(2.0)
    assert ranks.saves == 0
    ranks.draining = True
    for _ in range(20):
        ranks.step(1.0)
    assert ranks.saves == 1
    assert ranks.looks == [2, 2]


def test_being_told_to_stop_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = TwoRanks(monkeypatch, 60.0)
    ranks.keepers[0]._stop = threading.Event()
    ranks.keepers[0]._stop.set()
    assert ranks.keepers[0].wishes().stop
    ranks.step(0.1)
    assert ranks.saves == 1

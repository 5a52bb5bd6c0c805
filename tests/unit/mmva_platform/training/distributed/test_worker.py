"""When ranks save, stop, report and look whether a node is drained: together, or one waits for the others for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmva_platform.training.distributed import worker
from mmva_platform.training.distributed.worker import Reporter
from mmva_platform.training.loop.state import World
from mmva_platform.training.recipe import Recipe


class Ranks:
    """Two reporters whose broadcasts carry rank 0's tensor, a clock, and what they did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every_s: float) -> None:
        import ray.train

        self.now, self.draining = 0.0, False
        self.saves, self.reports, self.looks = [0, 0], [0, 0], [0, 0]
        self.rank, self._sent = 0, torch.zeros(4, dtype=torch.uint8)
        monkeypatch.setattr(worker.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(ray.train, "get_preemption_info", self._look)
        monkeypatch.setattr(torch.distributed, "broadcast", self._broadcast)
        monkeypatch.setattr(Reporter, "_listen", lambda _: None)
        monkeypatch.setattr(Reporter, "_report", lambda _self, _state, *, save: self._report(save))
        recipe = Recipe(dataset="d", workers=2, checkpoint={"every_s": every_s})
        self.ranks = []
        for self.rank in (0, 1):
            self.ranks.append(Reporter(recipe, SimpleNamespace(pairing=None), World(self.rank, 2), None))  # type: ignore[arg-type]

    def step(self, seconds: float, row: Any = None) -> list[bool]:
        self.now += seconds
        stopped = []
        for rank, reporter in enumerate(self.ranks):
            self.rank = rank
            stopped.append(reporter.on_step_end(SimpleNamespace(epoch=0, done=1, step=1), row))  # type: ignore[arg-type]
        return stopped

    def _broadcast(self, flags: torch.Tensor, *, src: int, async_op: bool) -> Any:
        assert (src, async_op) == (0, True)
        if self.rank == 0:
            self._sent = flags.clone()
        else:
            flags.copy_(self._sent)
        return SimpleNamespace(wait=lambda: None)

    def _report(self, save: bool) -> None:
        reporter = self.ranks[self.rank]
        reporter._rows, reporter._reported = [], self.now
        self.reports[self.rank] += 1
        if save:
            reporter.saved_at = self.now
            self.saves[self.rank] += 1

    def _look(self) -> object:
        self.looks[self.rank] += 1
        return object() if self.draining else None


@pytest.mark.parametrize(("every_s", "saves"), [(0.0, 99), (0.7, 33), (60.0, 0)])
def test_ranks_act_together_by_rank_0s_clock(monkeypatch: pytest.MonkeyPatch, every_s: float, saves: int) -> None:
    ranks = Ranks(monkeypatch, every_s)
    for _ in range(100):
        ranks.step(0.25)
        assert ranks.looks[0] == ranks.looks[1]
        assert ranks.saves[0] == ranks.saves[1]
        assert ranks.reports[0] == ranks.reports[1]
    assert 19 <= ranks.looks[0] <= 25  # about once a second, and not every step
    assert abs(ranks.saves[0] - saves) <= 8
    if every_s > 25:
        assert ranks.reports[0] == 4, "progress every five seconds"


def test_a_drained_node_is_a_reason_to_save_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, 60.0)
    for _ in range(3):
        ranks.step(1.0)
    assert ranks.saves == [0, 0]
    ranks.draining = True
    for _ in range(20):
        ranks.step(1.0)
    assert ranks.saves == [1, 1]


def test_told_to_stop_all_save_and_stop_after_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, 60.0)
    ranks.step(0.1)
    ranks.ranks[0]._stop.set()
    assert ranks.step(0.1) == [False, False]
    assert ranks.saves == [0, 0]
    assert ranks.step(0.1) == [True, True]
    assert ranks.saves == [1, 1]


def test_a_slow_storage_gets_one_checkpoint_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, 0.0)
    ranks.ranks[0]._written.clear()
    for _ in range(5):
        ranks.step(1.0)
    assert ranks.saves[0] <= 1
    ranks.ranks[0]._written.set()
    before = ranks.saves[0]
    for _ in range(3):
        ranks.step(1.0)
    assert ranks.saves[0] > before


def test_quick_epochs_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, 60.0)
    for _ in range(100):
        ranks.step(0.05, {"loss": 1.0})
    assert 5 <= ranks.reports[0] <= 10
    assert ranks.reports[0] == ranks.reports[1]

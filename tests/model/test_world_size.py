"""One worker and two give the same losses, gradients and weights, the tail batch and empty shares included.

Also when the second of them takes over in the middle of an epoch.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch


def in_two_processes(synthetic: ModuleType, folder: Path, *more: str) -> Any:
    """What two gloo processes compute."""
    size, out = 2, folder / "computed.npz"
    command = [sys.executable, synthetic.__file__]
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), str(folder / "rendezvous"), str(out), *more])
        for rank in range(size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * size
    return np.load(out)


def assert_same(together: Any, alone: Any) -> None:
    # A batch of 7 pairs gives unequal shares, the tail of one pair leaves the second rank with none.
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-9)
    steps = len(together["gradients"])
    np.testing.assert_allclose(together["gradients"], alone["gradients"][-steps:], rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(together["weights"], alone["weights"], rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("over", ["drawn", "all", "projections"])
def test_two_processes_compute_what_one_does(tmp_path: Path, synthetic: ModuleType, over: str) -> None:
    assert_same(in_two_processes(synthetic, tmp_path, over), synthetic.run(synthetic.World(), over))


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_stopped(tmp_path: Path, synthetic: ModuleType) -> None:
    stopped = synthetic.StopAt(8)  # of 18 steps: the second of the second epoch
    synthetic.run(synthetic.World(), "drawn", callback=stopped)
    torch.save(stopped.content, tmp_path / "checkpoint")
    together = in_two_processes(synthetic, tmp_path, "drawn", str(tmp_path / "checkpoint"))
    assert len(together["gradients"]) == 10
    assert_same(together, synthetic.run(synthetic.World(), "drawn"))

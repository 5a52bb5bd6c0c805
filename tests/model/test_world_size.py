"""One worker and two give the same losses, gradients and weights, the tail batch and empty shares included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path, synthetic: ModuleType) -> None:
    size, out = 2, tmp_path / "computed.npz"
    command = [sys.executable, synthetic.__file__]
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), str(tmp_path / "rendezvous"), str(out)])
        for rank in range(size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * size

    alone, together = synthetic.run(synthetic.World()), np.load(out)
    # A batch of 7 pairs gives unequal shares, the tail of one pair leaves the second rank with none.
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=1e-9)
    np.testing.assert_allclose(together["gradients"], alone["gradients"], rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(together["weights"], alone["weights"], rtol=1e-6, atol=1e-8)

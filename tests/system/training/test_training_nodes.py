"""A cluster of two nodes, one of which is lost in mid-epoch: the run goes on to what an undisturbed one computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmva import load_bundle
from mmva_platform.datasets.features import load_features
from mmva_platform.settings import Settings, validate
from mmva_platform.training.leakage import train_here
from mmva_platform.training.recipe import Recipe

# The epoch in which the node was lost ends with one worker; the second joins where the run waits for it.
FIXED, ELASTIC = (2, 2, 2, 2, 2, 2), (2, 1, 1, 1, 2, 2)
pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.whole]


@pytest.mark.parametrize(
    ("workers", "stop"),
    [
        pytest.param(2, False, id="fixed: as soon as the node is back"),
        pytest.param(2, True, id="fixed: told to stop while it waits, and resumed"),
        pytest.param([1, 2], False, id="elastic: with one worker, and with two when the node is back"),
    ],
)
def test_a_node_is_lost_and_comes_back(
    settings: Settings, dataset: str, workers: Any, stop: bool, tmp_path: Path
) -> None:
    script, name = Path(__file__).with_name("node_loss.py"), f"nodes-{len(str(workers))}-{stop}"
    # How long Ray Train tries to place a group for which there is no room any more, before it counts again.
    environment = os.environ | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
    done = subprocess.run(
        [sys.executable, script, dataset, tmp_path, name, json.dumps(workers), *["stop"] * stop],
        capture_output=True, text=True, timeout=240, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["lost_after_steps"] > 0, "in mid-epoch"
    sizes = ELASTIC if isinstance(workers, list) else FIXED
    assert tuple(row["workers"] for row in found["history"]) == sizes, (found["events"], done.stderr[-5000:])

    waited = "has room for 1 of 2 workers (1.5 CPU each)" in done.stderr
    assert waited == (sizes == FIXED), "who waits says so"
    assert ("has room for 2 workers again" in done.stderr) == (waited and not stop)
    assert (f"stopped while it waited for room for its workers; go on with --resume {name}" in done.stderr) == stop

    # Every row of every epoch's plan once: the mean losses over its pairs are those of one process that saw them all.
    recipe = validate(Recipe, json.loads((tmp_path / "runs" / name / "recipe.json").read_text()), "recipe")
    model, history = train_here(recipe, load_features(dataset, "tiny", settings))
    assert len(found["history"]) == len(history) == recipe.epochs
    for row, undisturbed in zip(found["history"], history, strict=True):
        assert row.keys() == undisturbed.keys()
        for key in row.keys() - {"seconds", "workers"}:
            assert row[key] == pytest.approx(undisturbed[key], rel=1e-4, abs=1e-5), key
    weights = load_bundle(Path(found["bundle"]), load_encoders=False).state_dict()
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(weights[name].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-5, err_msg=name)

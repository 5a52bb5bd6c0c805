"""A cluster of two nodes, one of which is lost in mid-run: the run goes on to what an undisturbed one computes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seaweed import ACCESS, SECRET, Seaweed

from mmva import load_bundle
from mmva_platform.datasets.features import load_features
from mmva_platform.settings import Settings, validate
from mmva_platform.training.loop.in_process import train_here
from mmva_platform.training.recipe import Recipe

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.whole]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An object store: the nodes share no folder for the run."""
    server = Seaweed(tmp_path_factory.mktemp("weed"))
    server.start()
    server.client().create_bucket(Bucket="training")
    yield server
    server.stop()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param((2, False), id="fixed: as soon as the node is back"),
        pytest.param((2, True), id="fixed: told to stop while it waits, and resumed"),
        pytest.param(([1, 2], False), id="elastic: with one worker, and with two when the node is back"),
    ],
)
def test_a_node_is_lost_and_comes_back(
    settings: Settings, dataset: str, store: Seaweed, case: tuple[Any, bool], tmp_path: Path
) -> None:
    workers, stop = case
    script, name = Path(__file__).with_name("node_loss.py"), f"nodes-{len(str(workers))}-{stop}".lower()
    storage = {"s3_endpoint": store.endpoint, "s3_region": "us-east-1"}
    (tmp_path / "settings.yaml").write_text(
        json.dumps({"home": str(tmp_path / "home"), "runs": "s3://training/runs", "storage": storage})
    )
    # How long Ray Train tries to place a group for which there is no room any more, before it counts again.
    environment = os.environ | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
    environment |= {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    done = subprocess.run(
        [sys.executable, script, tmp_path / "settings.yaml", dataset, name, json.dumps(workers), *["stop"] * stop],
        capture_output=True, text=True, timeout=240, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "checkpoint_000002" <= found["lost_at"] < "checkpoint_000150", "in mid-run"
    sizes = [size for size, _ in itertools.groupby(row["workers"] for row in found["history"])]
    assert sizes == ([2, 1, 2] if isinstance(workers, list) else [2]), done.stderr[-5000:]

    waited = "waits for 2 workers (1.5 CPU each); free in the cluster: " in done.stderr
    assert waited == (workers == 2), "a run that waits says so"
    assert ("its workers have their resources" in done.stderr) >= (waited and not stop)
    told = "stopped while it waited for 2 workers (1.5 CPU each); its last checkpoint is in epoch"
    assert (told in done.stderr) == stop

    # Every row of every epoch's plan once: the mean losses over its pairs are those of one process that saw them all.
    values = json.loads(store.client().get_object(Bucket="training", Key=f"runs/{name}/recipe.json")["Body"].read())
    recipe = validate(Recipe, values, "recipe")
    model, history = train_here(recipe, load_features(dataset, "tiny", settings))
    assert len(found["history"]) == len(history) == recipe.epochs
    for row, undisturbed in zip(found["history"], history, strict=True):
        assert row.keys() == undisturbed.keys()
        for key in row.keys() - {"seconds", "workers"}:
            assert row[key] == pytest.approx(undisturbed[key], rel=1e-4, abs=1e-5), key
    weights = load_bundle(Path(found["bundle"]), load_encoders=False).state_dict()
    for key, tensor in model.state_dict().items():
        np.testing.assert_allclose(weights[key].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-5, err_msg=key)

"""A node is lost in mid-run, then comes back: prints what became of the run as JSON.

As a script, because it needs a Ray of its own: python node_loss.py SETTINGS DATASET NAME WORKERS (as in a recipe)
[stop]. SETTINGS is the file of a Settings. With `stop` the run is told to stop while it waits for the node, and resumed
once there is another.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from mmva.errors import OperationFailed
from mmva_platform.settings import ClusterSettings, Settings, load_config, validate
from mmva_platform.training import trainer
from mmva_platform.training.distributed import launch
from mmva_platform.training.distributed.checkpoints import checkpoint_folders
from mmva_platform.training.recipe import Recipe
from mmva_platform.training.rundir import RunDirectory

EPOCHS = 150
PATIENCE_S = 120.0
# A node is noticed dead after some 2 s instead of 15.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
CPUS, STORE = 2, 100 * 2**20  # of a node: room for one worker of 1.5 CPUs


def recipe_of(dataset: str, name: str, workers: Any) -> Recipe:
    """Without what makes a difference in the last bits grow: dropout, whose draws differ by rank, and Adam."""
    values = {"dataset": dataset, "preset": "tiny", "name": name, "epochs": EPOCHS, "batch_size": 2}
    values |= {"workers": workers, "cpus_per_worker": 1.5, "model": {"hidden": 32, "dropout": 0.0}}
    values |= {"optimizer": {"name": "sgd", "lr": 0.02}}
    return validate(Recipe, values | {"checkpoint": {"every_s": 0}}, "recipe")


class Heard(logging.Handler):
    """True once it has been logged; everything goes to standard error."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words, self._heard = words, False

    def emit(self, record: logging.LogRecord) -> None:
        self._heard |= self._words in record.getMessage()
        sys.stderr.write(record.getMessage() + "\n")
        sys.stderr.flush()

    def __bool__(self) -> bool:
        return self._heard


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "not within the time allowed"
        time.sleep(0.01)


def add_node(address: str) -> subprocess.Popen[bytes]:
    """A node in a process of its own."""
    program = Path(sys.executable).with_name("ray")
    size = [f"--num-cpus={CPUS}", f"--object-store-memory={STORE}"]
    ports = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
    free = [f"--{name}-port=0" for name in ports]  # the head, on the same machine, has the usual ones
    command = [program, "start", f"--address={address}", *size, *free, "--block", "--disable-usage-stats"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def kill(node: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a node and to all that it started, as when a machine goes."""
    process = psutil.Process(node.pid)
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    node.wait()


def wait_for_both(address: str) -> None:
    ray.init(address, log_to_driver=False)
    wait_for(lambda: ray.cluster_resources().get("CPU") == 2 * CPUS)
    ray.shutdown()


def pause_worker() -> None:
    """Keep the one worker that is left from coming to the run's end before it can grow; growing kills it."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.suspend()


def main(settings: Settings, dataset: str, name: str, workers: Any, stop: bool) -> None:
    """Train while a thread takes the second node away and brings another."""
    launch._RESIZE_S = 1.0  # type: ignore[misc]
    head = {"num_cpus": CPUS, "object_store_memory": STORE, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [add_node(cluster.address)]
    wait_for_both(cluster.address)
    settings = settings.model_copy(update={"cluster": ClusterSettings(address=cluster.address)})
    rows: list[dict[str, Any]] = []
    waiting = Heard("waits for 2 workers")
    logging.getLogger("mmva_platform").addHandler(waiting)
    logging.getLogger("mmva_platform").setLevel("INFO")
    run = RunDirectory(name, settings)
    found: dict[str, Any] = {}
    failures: list[str] = []

    def newest() -> str:
        return max((Path(path).name for path in checkpoint_folders(*run.storage.filesystem())), default="")

    def fate() -> None:
        try:
            wait_for(lambda: newest() >= "checkpoint_000002")
            kill(nodes[0])
            found["lost_at"] = newest()
            if isinstance(workers, list):
                wait_for(lambda: rows and rows[-1]["workers"] == 1)
                pause_worker()
            if stop:
                wait_for(lambda: waiting)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            nodes.append(add_node(cluster.address))
        except BaseException as error:  # noqa: BLE001 - told by the main thread, which would wait for it in vain
            failures.append(repr(error))
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=fate, daemon=True)
    thread.start()
    recipe = recipe_of(dataset, name, workers)
    try:
        result = trainer.train(recipe, settings, progress=rows.append)
    except OperationFailed as error:
        assert not failures, failures
        sys.stderr.write(f"{error}\n")
        nodes.append(add_node(cluster.address))
        wait_for_both(cluster.address)
        result = trainer.train(recipe, settings, resume=name, progress=rows.append)
    thread.join(PATIENCE_S)
    found |= {"history": result.history, "bundle": str(result.bundle_dir)}
    for node in nodes[1:]:
        kill(node)
    cluster.shutdown()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(
        load_config(Settings, sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5:] == ["stop"]
    )

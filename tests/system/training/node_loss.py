"""A node is lost in mid-epoch, then comes back: prints what became of the run as JSON.

As a script, because it needs a Ray of its own: python node_loss.py DATASET HOME NAME WORKERS (as in a recipe) [stop].
With `stop` it is told to stop while it waits for the node, and resumed once there is another.
"""

from __future__ import annotations

import asyncio
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
from mmva_platform.settings import ClusterSettings, Settings, validate
from mmva_platform.training import trainer, watching
from mmva_platform.training.recipe import Recipe

EPOCHS = 6
WAITS_IN = 3  # the epoch at whose end an elastic run of one worker waits for the second
PATIENCE_S = 180.0
# A node is noticed dead after some 2 s instead of 15.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
CPUS, STORE = 2, 100 * 2**20  # of a node: room for one worker of 1.5 CPUs


def recipe_of(dataset: str, name: str, workers: Any) -> Recipe:
    """Without dropout, whose draws differ by the number of workers; a checkpoint after every step."""
    values = {"dataset": dataset, "preset": "tiny", "name": name, "epochs": EPOCHS, "batch_size": 2}
    values |= {"workers": workers, "cpus_per_worker": 1.5, "model": {"hidden": 32, "dropout": 0.0}}
    return validate(Recipe, values | {"checkpoint": {"every_s": 0}}, "recipe")


class PatientChannel(watching.Channel):
    """Keeps an elastic run that lost a worker at one epoch's end until it is ended there to grow."""

    async def tell(self, row: dict[str, Any]) -> None:
        """Hand on, and wait."""
        await super().tell(row)
        if row["workers"] == 1 and row["epoch"] == WAITS_IN:
            await asyncio.sleep(PATIENCE_S)


class Heard(logging.Handler):
    """True once it has been logged."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words, self._heard = words, False

    def emit(self, record: logging.LogRecord) -> None:
        self._heard |= self._words in record.getMessage()
        sys.stderr.write(record.getMessage() + "\n")

    def __bool__(self) -> bool:
        return self._heard


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "not within the time allowed"
        time.sleep(0.005)


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


def main(dataset: str, home: str, name: str, workers: Any, stop: bool) -> None:
    """Train while a thread takes the second node away and brings another."""
    watching.Channel = PatientChannel  # type: ignore[misc]
    trainer._RESIZE_S = 1.0  # type: ignore[misc]
    began = time.monotonic()
    head = {"num_cpus": CPUS, "object_store_memory": STORE, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [add_node(cluster.address)]
    wait_for_both(cluster.address)
    settings = Settings(home=Path(home), cluster=ClusterSettings(address=cluster.address))
    rows: list[dict[str, Any]] = []
    waiting = Heard("the run waits until it has more")
    logging.getLogger("mmva_platform.training.room").addHandler(waiting)
    logging.getLogger("mmva_platform.training.room").setLevel("INFO")
    checkpoints = settings.runs_dir / name / "checkpoints"
    found: dict[str, Any] = {"events": []}

    def say(what: str) -> None:
        found["events"].append(f"{time.monotonic() - began:.1f} s: {what}")
        sys.stderr.write(found["events"][-1] + "\n")
        sys.stderr.flush()

    def in_mid_epoch() -> int:
        """Steps of the second epoch that the last checkpoint holds."""
        last = max((path.name for path in checkpoints.glob("*.pt")), default="")
        return int(last.split("-")[1]) if last.startswith("000001-") else 0

    def fate() -> None:
        wait_for(lambda: in_mid_epoch() >= 4)
        kill(nodes[0])
        found["lost_after_steps"] = in_mid_epoch()
        say("node killed")
        if isinstance(workers, list):
            wait_for(lambda: rows[-1]["epoch"] == WAITS_IN)
        if stop:
            wait_for(lambda: waiting)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        nodes.append(add_node(cluster.address))
        say("another begins")
        wait_for(lambda: ray.cluster_resources().get("CPU") == 2 * CPUS or nodes[-1].poll() is not None)
        say(f"another is there: {ray.cluster_resources()}, ended with {nodes[-1].poll()}")

    def progress(row: dict[str, Any]) -> None:
        rows.append(row)
        say(f"epoch {row['epoch']} with {row['workers']}")

    thread = threading.Thread(target=fate, daemon=True)
    thread.start()
    recipe = recipe_of(dataset, name, workers)
    try:
        result = trainer.train(recipe, settings, progress=progress)
    except OperationFailed as error:
        say(str(error))
        nodes.append(add_node(cluster.address))
        wait_for_both(cluster.address)
        result = trainer.train(recipe, settings, resume=name, progress=progress)
    thread.join()
    found |= {"history": result.history, "bundle": str(result.bundle_dir)}
    for node in nodes[1:]:
        kill(node)
    cluster.shutdown()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5:] == ["stop"])

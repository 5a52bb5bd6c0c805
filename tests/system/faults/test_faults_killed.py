"""SIGKILL of the driver on a cluster that goes on, of workers and of the store: every item once, nothing twice.

test_faults_writes.py kills after every write; here Ray and its workers are there, and outlive the driver.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
from faulty_store import Intercept
from world import BROKEN, BUCKET, NAMES, World, differences, finished

pytestmark = pytest.mark.system
When = Literal["before", "after"]
Step = tuple[str, When, int]

COMMITS, LOG = "_mmva/{:06d}/commits/", "_delta_log/"
# While workers commit, and after what makes the version visible.
DRIVER_STEPS: list[Step] = [(COMMITS, "after", 2), (LOG, "after", 1)]
# All workers die before a file is there, while one waits for its answer, and before a record is there.
WORKER_STEPS: list[Step] = [
    ("_mmva/000000/embeddings/", "before", 1), ("status=ok/", "after", 3), ("_mmva/000000/commits/", "before", 3),
]  # fmt: skip


def kill(victim: list[int]) -> None:
    os.kill(victim[0], signal.SIGKILL)


def kill_along(world: World, begin: Callable[[], subprocess.Popen[str]], version: int) -> None:
    """Begin a command again and again, and SIGKILL it around a put each time; the last put publishes the version."""
    commits = COMMITS.format(version)
    for pattern, when, nth in DRIVER_STEPS:
        victim: list[int] = []
        put = f"{world.prefix}/{pattern.format(version)}"
        world.store.intercept(Intercept("PUT", put, when, partial(kill, victim), nth))
        before = set(world.objects(commits))
        process = begin()
        victim.append(process.pid)
        process.communicate(timeout=240)
        assert process.returncode == -signal.SIGKILL
        assert before <= set(world.objects(commits))
        published = (pattern, when) == (LOG, "after")
        assert world.place.version() == (version if published else version - 1 if version else None), (pattern, when)
    made = world.store.made(f"{world.prefix}/{commits}")
    assert len(made) == len(set(made)) == len(world.objects(commits))  # no shard was committed twice


def test_a_killed_driver_costs_no_item(world: World, whole: World) -> None:
    world.store.forget()
    folder = world.own_catalog()
    catalog = f"s3://{BUCKET}/{folder}"
    kill_along(world, lambda: world.annotation(catalog=catalog), 0)
    world.verify_whole()
    assert differences(without_uri(world.rows()), without_uri(whole.rows())) == []
    first = world.place.rows()

    picture = world.client.get_object(Bucket=BUCKET, Key=f"{folder}/picture-002.jpg")["Body"].read()
    for name in ("new-0.jpg", "new-1.jpg"):
        world.client.put_object(Bucket=BUCKET, Key=f"{folder}/{name}", Body=picture + name.encode())
    world.client.delete_object(Bucket=BUCKET, Key=f"{folder}/words-019.txt")
    kill_along(world, world.update, 1)
    world.verify()
    rows = world.place.rows()
    assert {row["id"] for row in rows["ok"]} == (NAMES | {"new-0.jpg", "new-1.jpg"}) - {"words-019.txt", *BROKEN}
    assert [row["id"] for row in rows["quarantined"]] == BROKEN
    kept = [row for row in rows["ok"] if not row["id"].startswith("new-")]
    assert kept == [row for row in first["ok"] if row["id"] != "words-019.txt"]
    assert world.place.rows(0) == first


def without_uri(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows of catalogs in different places."""
    return [{name: value for name, value in row.items() if name != "uri"} for row in rows]


def test_killed_workers_are_replaced(world: World, whole: World) -> None:
    world.store.forget()
    killed: list[int] = []

    def kill_all() -> None:
        workers = world.head.workers()
        for worker in workers:
            worker.kill()
        killed.append(len(workers))

    for folder, when, nth in WORKER_STEPS:
        world.store.intercept(Intercept("PUT", f"{world.prefix}/{folder}", when, kill_all, nth))
    finished(world.annotation())
    assert len(killed) == len(WORKER_STEPS)
    assert all(killed)
    commits = [json.loads(data) for data in world.place.contents(COMMITS.format(0)).values()]
    assert max(commit["attempt"] for commit in commits) > 1
    world.verify_whole()
    assert differences(world.rows(), whole.rows()) == []


def test_a_server_killed_in_the_middle_comes_back(world: World) -> None:
    commits = f"{world.prefix}/{COMMITS.format(0)}"
    world.store.intercept(Intercept("PUT", commits, "before", world.weed.kill, nth=2))
    world.storage |= {"max_attempts": 3, "patience_s": 100}
    process = world.annotation()
    assert world.weed.process is not None
    world.weed.process.wait(timeout=240)
    world.weed.start()
    finished(process)
    assert any(seen.fault == "upstream is away" for seen in world.store.seen)
    world.verify_whole()

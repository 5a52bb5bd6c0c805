"""SIGKILL of the driver at every step of the commit, of workers and of the store: every item once, nothing twice."""

from __future__ import annotations

import json
import os
import signal
from typing import Any, Literal

import pytest
from faulty_store import Intercept
from world import World, differences, finished

pytestmark = pytest.mark.system
STEPS = [
    ("plan/items-", 1), ("plan.json", 1), ("data/", 1), ("commits/", 2), ("MANIFEST.json", 1),
]  # fmt: skip


# All workers die before a data file is there, while one waits for its answer, and before a record is there.
WORKER_STEPS: list[tuple[str, Literal["before", "after"], int]] = [
    ("data/", "before", 1), ("data/", "after", 3), ("commits/", "before", 3),
]  # fmt: skip


def killed_at(world: World, pattern: str, when: Any, nth: int) -> None:
    """Run `mmva annotate` and SIGKILL it around a put."""
    victim: list[int] = []
    world.store.intercept(
        Intercept("PUT", f"{world.prefix}/{pattern}", when, lambda: os.kill(victim[0], signal.SIGKILL), nth)
    )
    process = world.annotation()
    victim.append(process.pid)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL


def test_killed_around_every_put_and_run_again(world: World, whole: World) -> None:
    world.store.forget()
    for pattern, nth in STEPS:
        for when in ("before", "after"):
            committed = set(world.objects("commits/"))
            killed_at(world, pattern, when, nth)
            assert committed <= set(world.objects("commits/"))
            published = pattern == "MANIFEST.json" and when == "after"
            assert ("MANIFEST.json" in world.objects()) == published, (pattern, when)
    finished(world.annotation())
    world.verify_whole()
    commits = world.store.made(f"{world.prefix}/commits/")
    assert len(commits) == len(set(commits)) == len(world.objects("commits/"))
    assert differences(world.rows(), whole.rows()) == []


def test_killed_workers_are_replaced(world: World, whole: World) -> None:
    world.store.forget()
    killed: list[int] = []

    def kill() -> None:
        workers = world.head.workers()
        for worker in workers:
            worker.kill()
        killed.append(len(workers))

    for folder, when, nth in WORKER_STEPS:
        world.store.intercept(Intercept("PUT", f"{world.prefix}/{folder}", when, kill, nth))
    finished(world.annotation())
    assert len(killed) == len(WORKER_STEPS)
    assert all(killed)
    commits = [json.loads(world.read(key)) for key in world.objects("commits/")]
    assert max(commit["attempt"] for commit in commits) > 1
    world.verify_whole()
    assert differences(world.rows(), whole.rows()) == []


def test_a_server_killed_in_the_middle_comes_back(world: World) -> None:
    world.store.intercept(Intercept("PUT", f"{world.prefix}/commits/", "before", world.weed.kill, nth=2))
    world.storage |= {"max_attempts": 3, "patience_s": 100}
    process = world.annotation()
    assert world.weed.process is not None
    world.weed.process.wait(timeout=240)
    world.weed.start()
    finished(process)
    assert any(seen.fault == "upstream is away" for seen in world.store.seen)
    world.verify_whole()

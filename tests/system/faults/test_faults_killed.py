"""SIGKILL at every step of the commit: the same command again ends with every item once, and redoes nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from faulty_store import Intercept
from world import CAPTIONS, PICTURES, World, finished

pytestmark = pytest.mark.system
STEPS = [
    ("plan/items-", 1), ("plan.json", 1), ("data/", 1), ("commits/", 2), ("MANIFEST.json", 1),
]  # fmt: skip


def killed_at(world: World, pattern: str, when: Any, nth: int) -> None:
    """Run `mmva annotate` and SIGKILL it around a put."""
    victim: list[int] = []
    world.store.intercept(
        Intercept(
            "PUT", f"{world.out.rpartition('/')[2]}/{pattern}", when, lambda: os.kill(victim[0], signal.SIGKILL), nth
        )
    )
    process = world.annotation()
    victim.append(process.pid)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL


def test_killed_around_every_put_and_run_again(make_world: Callable[[], World]) -> None:
    world, whole = make_world(), make_world()
    for pattern, nth in STEPS:
        for when in ("before", "after"):
            committed = set(world.objects("commits/"))
            killed_at(world, pattern, when, nth)
            assert committed <= set(world.objects("commits/"))
            assert ("MANIFEST.json" in world.objects()) == (pattern == "MANIFEST.json" and when == "after"), (
                pattern,
                when,
            )
    finished(world.annotation())
    report = world.verify()
    assert (report["items"], report["quarantined"]) == (PICTURES + CAPTIONS, 2)
    commits = world.store.made(f"{world.out.rpartition('/')[2]}/commits/")
    assert len(commits) == len(set(commits)) == len(world.objects("commits/"))
    finished(whole.annotation())
    assert world.rows() == whole.rows()

"""A run that has no place for its workers says so once, and once more when it has."""

from __future__ import annotations

from typing import Any

import pytest

from mmva_platform.training.room import Room

WAITS = (
    "training one: the cluster has room for 1 of 2 workers (1.5 CPU each): the run waits until it has more and goes "
    "on from its last checkpoint (Ctrl-C three times ends it)"
)


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_it_says_what_is_missing_and_when_it_is_there_again(caplog: pytest.LogCaptureFixture) -> None:
    nodes = [node(CPU=2.0), node(CPU=2.0, memory=1e9)]
    room = Room("one", 2, {"CPU": 1.5}, lambda: nodes)
    caplog.set_level("INFO", logger="mmva_platform.training.room")
    room.look()
    assert not room.missing
    nodes[1]["Alive"] = False
    room.look()
    room.look()
    assert room.missing
    nodes[1]["Alive"] = True
    room.look()
    room.look()
    assert not room.missing
    assert [record.message for record in caplog.records] == [
        WAITS,
        "training one: the cluster has room for 2 workers again",
    ]


@pytest.mark.parametrize(
    ("fewest", "worker", "nodes", "missing"),
    [
        (2, {"CPU": 1.5}, [node(CPU=3.0)], False),
        (2, {"CPU": 1.5}, [node(CPU=1.0), node(CPU=1.0), node(CPU=1.0)], True),  # no node has one worker's
        (2, {"CPU": 1.5, "GPU": 1.0}, [node(CPU=8.0, GPU=1.0), node(CPU=8.0)], True),
        (3, {"CPU": 1.5, "GPU": 1.0}, [node(CPU=8.0, GPU=2.0)], True),
        (2, {"CPU": 1.5, "GPU": 1.0}, [node(CPU=8.0, GPU=2.0)], False),
        (5, {"CPU": 0.2}, [node(CPU=1.0)], False),  # of which Python's 1.0 // 0.2 makes four
        (1, {"CPU": 1.5}, [], True),
    ],
)
def test_each_worker_has_all_it_takes_on_one_node(
    fewest: int, worker: dict[str, float], nodes: list[dict[str, Any]], missing: bool
) -> None:
    room = Room("one", fewest, worker, lambda: nodes)
    room.look()
    assert room.missing == missing

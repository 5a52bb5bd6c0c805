"""A store that fails or never answers, two drivers on one output, commits that are gone, on a real Ray."""

from __future__ import annotations

import os

import pytest
from faulty_store import Intercept
from world import BROKEN, BUCKET, World, differences, finished

pytestmark = pytest.mark.system
SEEDS = [int(seed) for seed in os.environ.get("MMVA_FAULT_SEEDS", "1 2").split()]
COMMITS = "_mmva/000000/commits/"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_faulty_store_costs_no_item(world: World, seed: int) -> None:
    world.store.make_faults(seed, rate=0.1)
    again = f"MMVA_FAULT_SEEDS={seed} pytest tests/system/faults/test_faults_store.py -k faulty"
    process = world.annotation()
    out, err = process.communicate(timeout=240)
    faults = {seen.fault for seen in world.store.seen if seen.fault}
    world.store.forget()
    assert process.returncode == 0, f"{again}\n{out}\n{err}"
    assert len(faults) >= 3, again
    world.verify_whole()


def test_what_cannot_be_annotated_is_balanced(whole: World) -> None:
    whole.store.forget()
    whole.verify_whole()
    rows = whole.place.rows()
    assert [row["id"] for row in rows["quarantined"]] == BROKEN
    assert not {row["id"] for row in rows["ok"]} & set(BROKEN)
    summary = whole.summary
    assert summary["items"] == summary["ok"] + summary["quarantined"]
    assert sum(summary["causes"].values()) == len(BROKEN)


def test_deleted_commits_rerun_exactly_their_shards(whole: World) -> None:
    rows = whole.rows()
    lost = [f"{whole.prefix}/{path}" for path in whole.objects(COMMITS)[::3]]
    published = [f"{whole.prefix}/{path}" for path in (*whole.objects("_delta_log/"), "_mmva/000000/version.json")]
    for key in (*lost, *published):
        whole.client.delete_object(Bucket=BUCKET, Key=key)
    assert whole.place.version() is None
    whole.store.forget()
    finished(whole.annotation())
    assert sorted(whole.store.made(f"{whole.prefix}/{COMMITS}")) == sorted(f"{BUCKET}/{key}" for key in lost)
    assert whole.rows() == rows
    whole.verify_whole()


def test_two_drivers_on_one_output(world: World, whole: World) -> None:
    world.store.forget()
    first, second = world.annotation(), world.annotation()
    finished(first)
    finished(second)
    commits = world.store.made(f"{world.prefix}/{COMMITS}")
    assert len(commits) == len(set(commits))
    world.verify_whole()
    assert world.place.version() == 0
    assert differences(world.rows(), whole.rows()) == []


def test_a_store_that_never_answers_ends_the_run_with_its_name(world: World) -> None:
    world.storage |= {"max_attempts": 2, "read_timeout_s": 1, "patience_s": 2}
    world.store.silent = True
    said = finished(world.annotation(), code=1)
    assert "Read timeout" in said
    assert world.store.endpoint in said
    assert "Traceback" not in said


def test_a_store_that_falls_silent_in_the_middle_ends_the_run_and_keeps_what_is_committed(world: World) -> None:
    def fall_silent() -> None:
        world.store.silent = True

    world.store.intercept(Intercept("PUT", f"{world.prefix}/{COMMITS}", "after", fall_silent, nth=5))
    world.storage |= {"max_attempts": 2, "read_timeout_s": 1, "patience_s": 2}
    said = finished(world.annotation(), code=1)
    assert world.store.endpoint in said
    assert "Traceback" not in said
    committed = world.objects(COMMITS)
    assert 5 <= len(committed) < 8  # each one that is left waits for the store, three times
    world.store.forget()
    world.without_ray("resume")
    assert not {f"{BUCKET}/{world.prefix}/{path}" for path in committed} & set(world.store.made("commits/"))
    world.verify_whole()

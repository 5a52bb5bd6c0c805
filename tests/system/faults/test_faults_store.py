"""A store that fails or never answers; two drivers; commits that are gone; another model, another catalog."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_store import Intercept
from world import BROKEN, BUCKET, World, differences, finished

pytestmark = pytest.mark.system
SEEDS = [int(seed) for seed in os.environ.get("MMVA_FAULT_SEEDS", "1 2 3").split()]


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
    causes = {row["id"]: row["error"] for row in whole.rows("quarantine")}
    assert list(causes) == BROKEN
    assert not {row["id"] for row in whole.rows()} & set(BROKEN)
    summary = json.loads(finished(whole.annotation()))
    assert summary["items"] == summary["ok"] + summary["quarantined"]
    assert sum(summary["causes"].values()) == len(BROKEN)


def test_deleted_commits_rerun_exactly_their_shards(whole: World) -> None:
    rows = whole.rows()
    lost = [f"{whole.prefix}/{path}" for path in whole.objects("commits/")[::3]]
    for key in (*lost, f"{whole.prefix}/MANIFEST.json"):
        whole.client.delete_object(Bucket=BUCKET, Key=key)
    whole.store.forget()
    finished(whole.annotation())
    assert sorted(whole.store.made(f"{whole.prefix}/commits/")) == sorted(f"{BUCKET}/{key}" for key in lost)
    assert whole.rows() == rows
    whole.verify_whole()


def test_another_model_is_refused_and_a_prefix_that_grew_changes_nothing(
    whole: World, make_tiny_bundle: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    whole.store.forget()
    before = {path: whole.read(path) for path in whole.objects()}
    refusal = finished(whole.annotation(model=make_tiny_bundle(tmp_path / "other", 1)), code=3)
    assert "model digest" in refusal
    picture = whole.client.get_object(Bucket=BUCKET, Key="catalog/picture-002.jpg")["Body"].read()
    whole.client.put_object(Bucket=BUCKET, Key="catalog/picture-new.jpg", Body=picture)
    try:
        finished(whole.annotation())
    finally:
        whole.client.delete_object(Bucket=BUCKET, Key="catalog/picture-new.jpg")
    assert {path: whole.read(path) for path in whole.objects()} == before


def test_two_drivers_on_one_output(world: World, whole: World) -> None:
    world.store.forget()
    first, second = world.annotation(), world.annotation()
    finished(first)
    finished(second)
    commits = world.store.made(f"{world.prefix}/commits/")
    assert len(commits) == len(set(commits))
    world.verify_whole()
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

    world.store.intercept(Intercept("PUT", f"{world.prefix}/commits/", "after", fall_silent, nth=2))
    world.storage |= {"max_attempts": 2, "read_timeout_s": 1, "patience_s": 2}
    said = finished(world.annotation(), code=1)
    assert world.store.endpoint in said
    assert "Traceback" not in said
    committed = world.objects("commits/")
    assert len(committed) >= 2
    world.store.forget()
    finished(world.annotation())
    assert not {f"{BUCKET}/{world.prefix}/{path}" for path in committed} & set(world.store.made("commits/"))
    world.verify_whole()

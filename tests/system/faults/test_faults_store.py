"""A store that fails, goes away or never answers; commits that are gone; two drivers; another model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_store import Intercept
from world import BUCKET, CAPTIONS, PICTURES, World, finished

pytestmark = pytest.mark.system
SEED = int(os.environ.get("MMVA_FAULT_SEED", "1"))


def test_a_faulty_store_costs_no_item(world: World) -> None:
    world.store.make_faults(SEED, rate=0.1)
    again = f"MMVA_FAULT_SEED={SEED} pytest tests/system/faults/test_faults_store.py -k faulty"
    process = world.annotation()
    out, err = process.communicate(timeout=240)
    faults = {seen.fault for seen in world.store.seen if seen.fault}
    world.store.forget()
    assert process.returncode == 0, f"{again}\n{out}\n{err}"
    assert len(faults) >= 3, again
    report = world.verify()
    assert (report["items"], report["quarantined"]) == (PICTURES + CAPTIONS, 2), again


def test_deleted_commits_rerun_exactly_their_shards_and_another_model_is_refused(
    world: World, make_tiny_bundle: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    finished(world.annotation())
    rows, prefix = world.rows(), world.out.removeprefix(f"s3://{BUCKET}/")
    lost = [f"{prefix}/{path}" for path in world.objects("commits/")[::3]]
    for key in (*lost, f"{prefix}/MANIFEST.json"):
        world.client.delete_object(Bucket=BUCKET, Key=key)
    world.store.forget()
    finished(world.annotation())
    assert sorted(world.store.made(f"{prefix}/commits/")) == sorted(f"{BUCKET}/{key}" for key in lost)
    assert world.rows() == rows
    world.verify()
    before = sorted(world.objects())
    refusal = finished(world.annotation(model=make_tiny_bundle(tmp_path / "other", 1)), code=3)
    assert "model digest" in refusal
    assert sorted(world.objects()) == before


def test_two_drivers_on_one_output(world: World) -> None:
    first, second = world.annotation(), world.annotation()
    finished(first)
    finished(second)
    assert json.loads(finished(world.start("annotations", "status", world.out, "--json")))["published"]
    report = world.verify()
    assert report["items"] == PICTURES + CAPTIONS


def test_a_store_that_never_answers_ends_the_run_with_its_name(world: World) -> None:
    world.storage |= {"max_attempts": 2, "read_timeout_s": 1, "patience_s": 2}
    world.store.silent = True
    said = finished(world.annotation(), code=1)
    assert "Read timeout" in said
    assert world.store.endpoint in said
    assert "Traceback" not in said


def test_a_server_killed_in_the_middle_comes_back(world: World) -> None:
    def kill() -> None:
        world.weed.kill()

    world.store.intercept(Intercept("PUT", f"{world.out.rpartition('/')[2]}/commits/", "before", kill, nth=2))
    world.storage |= {"max_attempts": 3}
    process = world.annotation()
    assert world.weed.process is not None
    world.weed.process.wait(timeout=240)
    world.weed.start()
    _, said = process.communicate(timeout=240)
    assert process.returncode in {0, 1}
    assert "Traceback" not in said
    finished(world.annotation())
    world.verify()

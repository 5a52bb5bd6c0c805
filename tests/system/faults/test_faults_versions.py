"""Drivers that make the same version at once, other options, and a store that fails while the table is committed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_store import FaultyStore, Intercept
from made import Made
from places import S3Place

from mmva_platform.settings import Settings

pytestmark = pytest.mark.system


@pytest.mark.parametrize("last", ["plan/items-", "status=", "commits/", "version.json"])
@pytest.mark.parametrize("verb", ["annotate", "update"])
def test_a_driver_that_sleeps_while_another_finishes_changes_nothing(made: Made, verb: str, last: str) -> None:
    place = made.start(verb, f"{verb}-slow-{last.strip('/=-').replace('/', '-')}")
    slow = made.stopped(verb, place, last)
    said = made.run(verb, place).end()
    assert "error" not in said
    version, rows, log = place.version(), place.rows(), place.contents("_delta_log/")
    assert version == (0 if verb == "annotate" else 1)
    late = slow.go_on()
    assert (late["version"], late["run_id"]) == (said["version"], said["run_id"])
    assert (place.version(), place.rows(), place.contents("_delta_log/")) == (version, rows, log)


def test_of_an_update_and_a_retry_one_makes_the_version_and_the_other_is_refused(made: Made) -> None:
    place = made.start("update", "update-first")
    update = made.stopped("update", place, "plan.json")
    refused = made.run("retry", place).end()
    assert (refused["error"], "is under way: update" in refused["message"]) == ("CheckFailed", True)
    assert update.go_on()["version"] == place.version() == 1
    assert "gone.png" not in {row["id"] for row in place.rows()["ok"]}

    place = made.start("update", "retry-first")
    update = made.stopped("update", place, "plan/items-")
    assert made.run("retry", place).end()["version"] == 1
    rows = place.rows()
    assert update.go_on()["error"] == "CheckFailed"
    assert (place.version(), place.rows()) == (1, rows)
    assert made.run("update", place).end()["version"] == place.version() == 2
    assert "gone.png" not in {row["id"] for row in place.rows()["ok"]}
    assert place.rows(1) == rows


def test_another_model_is_refused_and_a_folder_that_grew_changes_nothing(
    made: Made, make_tiny_bundle: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    before = made.base.contents()
    said = made.run("annotate", made.base, model=make_tiny_bundle(tmp_path / "other", 1)).end()
    assert (said["error"], "model digest" in said["message"]) == ("CheckFailed", True)
    assert "error" not in made.run("annotate", made.base).end()
    assert made.base.contents() == before


@pytest.mark.parametrize("made", ["seaweed"], indirect=True)
def test_a_faulty_store_costs_an_update_no_item(made: Made, store: FaultyStore) -> None:
    store.forget()
    for seed in (1, 2, 3):
        place = made.start("update", f"update-faults-{seed}")
        store.make_faults(seed, rate=0.15)
        said = made.run("update", place, settings=through(store, made)).end()
        store.make_faults(seed, rate=0)
        assert "error" not in said, (seed, said)
        assert place.version() == 1
        assert place.rows() == made.calm("update").rows
    faults = {seen.fault for seen in store.seen if seen.fault}
    log = {seen.fault for seen in store.seen if "/_delta_log/" in seen.path and seen.fault}
    store.forget()
    assert len(faults) >= 5
    assert log  # requests that deltalake makes and repeats by itself


@pytest.mark.parametrize("made", ["seaweed"], indirect=True)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_store_that_falls_silent_at_the_tables_commit_ends_the_update_with_its_name(
    made: Made, store: FaultyStore, when: str
) -> None:
    def fall_silent() -> None:
        store.silent = True

    assert isinstance(made.base, S3Place)
    place = made.start("update", f"silent-{when}")
    store.forget()
    store.intercept(Intercept("PUT", f"{place.uri.removeprefix('s3://')}/_delta_log/", when, fall_silent))
    said = made.run("update", place, settings=through(store, made, max_attempts=2, read_timeout_s=1)).end()
    store.forget()
    assert said["error"] == "StorageUnavailable"
    assert store.endpoint in said["message"]
    assert place.version() == (0 if when == "before" else 1)
    assert "error" not in made.run("resume", place).end()
    assert place.version() == 1
    assert "gone.png" not in {row["id"] for row in place.rows()["ok"]}


def through(store: FaultyStore, made: Made, **storage: int) -> Settings:
    """Settings that lead through the proxy."""
    values = {"s3_endpoint": store.endpoint, "connect_timeout_s": 2, "read_timeout_s": 10} | storage
    return Settings.model_validate({"home": made.settings.home, "storage": values})

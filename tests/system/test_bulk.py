"""Passes on real Ray Data pipelines: streaming, errors, dead and hung workers, nodes, stops and stalls."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import UsageError
from mmva_platform.bulk import Attempt, Resources, ShardsFailedError, Stage, StalledError, StoppedError, run_pass
from mmva_platform.settings import ClusterSettings, Settings
from mmva_platform.storage import StorageDenied

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def make_worker(folder: str = "") -> Any:
    """The worker of these tests, made inside the function so that it travels by value."""
    place = Path(folder)

    class Worker:
        def __call__(self, shard: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
            action = shard.get("action", "")
            if action == "denied" or (action == "denied once" and attempt.number == 1):
                raise StorageDenied("s3://bucket/a: access denied")
            if action == "bug":
                raise KeyError("a bug keeps its traceback")
            if action == "sleep":
                time.sleep(shard["seconds"])
            if action == "die once" and attempt.deaths == 0:
                os._exit(1)
            if action == "die":
                with (place / "deaths").open("a") as file:
                    file.write("x")
                os._exit(1)
            if action == "hang once" and attempt.deaths == 0:
                attempt.step("decode")
                time.sleep(600)
            threads = os.environ["OMP_NUM_THREADS"]
            seen = {"deaths": attempt.deaths, "attempt": attempt.number, "at_fault": attempt.items_at_fault}
            return {"shard": shard["shard"], "at": time.time(), "threads": threads, "nested": [[1], [None, "a"]]} | seen

    return Worker()


def doubled() -> Any:
    class Before:
        def __call__(self, shard: dict[str, Any], _attempt: Attempt) -> dict[str, Any]:
            if shard.get("action") == "fail before":
                raise StorageDenied("before")
            return shard | {"before": 2 * int(shard["shard"])}

    return Before()


def final() -> Any:
    class Final:
        def __call__(self, shard: dict[str, Any], _attempt: Attempt) -> int:
            return int(shard["before"])

    return Final()


def run(shards: list[dict[str, Any]], folder: Path, **options: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []

    def collect(result: dict[str, Any]) -> None:
        results.append({**result, "seen": time.time()})

    cluster = ClusterSettings.model_validate(options.pop("cluster", {}))
    run_pass(
        [{"shard": f"{number:03d}", **shard} for number, shard in enumerate(shards)],
        make_worker, stage="test", settings=Settings(cluster=cluster), on_result=collect,
        kwargs={"folder": str(folder)}, **{"resources": Resources(max_workers=2), **options},
    )  # fmt: skip
    return results


def test_results_stream_and_a_dead_worker_is_replaced(tmp_path: Path) -> None:
    shards: list[dict[str, Any]] = [{"action": "sleep", "seconds": 0.5} for _ in range(8)]
    shards[2] = {"action": "die once"}
    results = run(shards, tmp_path)
    assert sorted(result["shard"] for result in results) == [f"{number:03d}" for number in range(8)]
    assert {result["threads"] for result in results} == {"1"}
    assert results[0]["nested"] == [[1], [None, "a"]]
    assert {result["shard"]: result["deaths"] for result in results} == {f"{n:03d}": int(n == 2) for n in range(8)}
    assert min(result["seen"] for result in results) < max(result["at"] for result in results)


def test_a_failed_shard_is_tried_again_after_the_others(tmp_path: Path) -> None:
    results = run([{"action": "denied once"}, {}, {}], tmp_path)
    assert {result["shard"]: (result["attempt"], result["at_fault"]) for result in results} == {
        "000": (2, True), "001": (1, False), "002": (1, False),
    }  # fmt: skip


def test_a_shard_that_always_fails_costs_only_itself_and_is_named(tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(ShardsFailedError, match=r"test: 1 of 4 shards .* shard 001 after 2 on node \w+: .*denied"):
        run_pass(
            [{"shard": f"{n:03d}", "action": "denied" if n == 1 else ""} for n in range(4)],
            make_worker, stage="test", settings=Settings(cluster=ClusterSettings(max_attempts=2)),
            on_result=lambda result: seen.append(result["shard"]),
        )  # fmt: skip
    assert sorted(seen) == ["000", "002", "003"]


def test_where_nothing_works_the_error_arrives_as_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(StorageDenied) as error:
        run([{"action": "denied"}] * 9, tmp_path)
    assert str(error.value) == "s3://bucket/a: access denied"


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a bug keeps its traceback") as error:
        run([{"action": "bug"}], tmp_path, cluster={"max_attempts": 1})
    assert "test_bulk.py" in "".join(error.value.__notes__)


def test_a_shard_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(ShardsFailedError, match=r"shard 000 .* its worker process died 4 times"):
        run([{"action": "die"}, {}], tmp_path, cluster={"max_attempts": 1})
    assert (tmp_path / "deaths").read_text() == "xxxx"


def test_a_hung_step_costs_its_worker_and_nothing_else(tmp_path: Path) -> None:
    results = run([{"action": "hang once"}, {}], tmp_path, step_limit_s=1.0)
    assert {result["shard"]: result["deaths"] for result in results} == {"000": 1, "001": 0}


def test_a_slow_shard_is_no_stall(tmp_path: Path) -> None:
    results = run([{"action": "sleep", "seconds": 40}], tmp_path, cluster={"stall_timeout_s": 30})
    assert [result["deaths"] for result in results] == [0]


def test_a_stop_finishes_what_is_under_way(tmp_path: Path) -> None:
    begun = time.monotonic()
    seen: list[Any] = []
    with pytest.raises(StoppedError, match=r"test: stopped on request after \d+ of 40 shards"):
        run_pass(
            [{"shard": f"{n:03d}", "action": "sleep", "seconds": 1} for n in range(40)],
            make_worker, stage="test", settings=Settings(), on_result=seen.append,
            resources=Resources(max_workers=1), stopping=lambda: bool(seen),
        )  # fmt: skip
    assert 1 <= len(seen) < 20
    assert time.monotonic() - begun < 40


def test_a_pass_that_cannot_start_says_what_it_waits_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a worker needs 0\.5 GPU and the cluster has 0"):
        run([{}], tmp_path, resources=Resources(gpus=0.5))
    cluster = {"max_gpus": 1, "start_timeout_s": 8}
    with pytest.raises(StalledError, match=r"no worker ran for \d+ s at 0 of 1 shards; .* 1 CPU with 0\.5 GPU"):
        run([{}], tmp_path, resources=Resources(gpus=0.5), cluster=cluster)


def test_two_stages_hand_over_what_the_first_made() -> None:
    results: list[int] = []
    shards = [{"shard": f"{n:03d}", "action": "fail before" if n == 3 else ""} for n in range(4)]
    with pytest.raises(ShardsFailedError, match=r"shard 003 after 1 on node .*: before"):
        run_pass(
            shards, final, stage="test", settings=Settings(cluster=ClusterSettings(max_attempts=1)),
            on_result=results.append, resources=Resources(max_workers=1),
            before=Stage(doubled, resources=Resources(max_workers=1)),
        )  # fmt: skip
    assert sorted(results) == [0, 2, 4]


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    assert run([], tmp_path) == []

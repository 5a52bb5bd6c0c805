"""Passes on real Ray Data pipelines: streaming, errors, dead and hung workers, nodes, stops and stalls."""

from __future__ import annotations

import os
import threading
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


def test_results_stream_and_errors_deaths_and_hangs_cost_a_second_try(tmp_path: Path) -> None:
    shards: list[dict[str, Any]] = [{"action": "sleep", "seconds": 0.5} for _ in range(8)]
    shards[1:4] = [{"action": "denied once"}, {"action": "die once"}, {"action": "hang once"}]
    results = {result["shard"]: result for result in run(shards, tmp_path, step_limit_s=2.0)}
    assert sorted(results) == [f"{number:03d}" for number in range(8)]
    assert {result["threads"] for result in results.values()} == {"1"}
    assert results["000"]["nested"] == [[1], [None, "a"]]
    assert [results[f"{n:03d}"]["deaths"] for n in range(8)] == [0, 0, 1, 1, 0, 0, 0, 0]
    assert [results[f"{n:03d}"]["attempt"] for n in range(8)] == [1, 2, 1, 1, 1, 1, 1, 1]
    assert results["001"]["at_fault"]
    # The first result arrived before the last one was made.
    assert min(result["seen"] for result in results.values()) < max(result["at"] for result in results.values())


def test_shards_that_always_fail_or_kill_cost_only_themselves_and_a_slow_one_is_no_stall(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    actions: list[dict[str, Any]] = [{}, {"action": "denied"}, {"action": "die"}, {"action": "sleep", "seconds": 25}]
    with pytest.raises(ShardsFailedError, match=r"test: 2 of 4 shards .* shard 001 after 2 on node \w+: .*denied"):
        run_pass(
            [{"shard": f"{n:03d}", **action} for n, action in enumerate(actions)],
            make_worker, stage="test", settings=Settings(cluster=ClusterSettings(max_attempts=2, stall_timeout_s=20)),
            on_result=seen.append, kwargs={"folder": str(tmp_path)}, resources=Resources(max_workers=2),
        )  # fmt: skip
    assert sorted((result["shard"], result["deaths"]) for result in seen) == [("000", 0), ("003", 0)]
    assert (tmp_path / "deaths").read_text() == "xxxx"


def test_where_nothing_works_the_error_arrives_as_it_was_raised_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a bug keeps its traceback") as error:
        run([{"action": "bug"}] * 2, tmp_path, cluster={"max_attempts": 1})
    assert "test_bulk.py" in "".join(error.value.__notes__)


def test_a_stop_finishes_what_is_under_way(tmp_path: Path) -> None:
    seen: list[Any] = []
    with pytest.raises(StoppedError, match=r"test: stopped on request after \d+ of 40 shards"):
        run_pass(
            [{"shard": f"{n:03d}", "action": "sleep", "seconds": 1} for n in range(40)],
            make_worker, stage="test", settings=Settings(), on_result=seen.append,
            resources=Resources(max_workers=1), stopping=lambda: bool(seen),
        )  # fmt: skip
    assert 1 <= len(seen) < 20


def test_a_pass_that_cannot_start_says_what_it_waits_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a worker needs 0\.5 GPU and the cluster has 0"):
        run([{}], tmp_path, resources=Resources(gpus=0.5))
    cluster = {"max_gpus": 1, "start_timeout_s": 8}
    with pytest.raises(StalledError, match=r"no worker ran for \d+ s at 0 of 1 shards; .* 1 CPU with 0\.5 GPU"):
        run([{}], tmp_path, resources=Resources(gpus=0.5), cluster=cluster)
    assert not [thread.name for thread in threading.enumerate() if "StreamingExecutor" in thread.name]


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

"""The rules of a pass without a cluster: retries, when it gives up, deaths of workers, what fits."""

from __future__ import annotations

from typing import Any

import pytest

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.bulk import monitor as monitor_module
from mmva_platform.bulk.attempt import GIVE_UP_AFTER, Attempt
from mmva_platform.bulk.failures import Failures, ShardsFailedError
from mmva_platform.bulk.monitor import Monitor
from mmva_platform.bulk.resources import Resources, actors_that_fit, check_feasible, most_actors
from mmva_platform.settings import ClusterSettings

DISK_FULL = OperationFailed("no space left on device")


def failures(shards: int = 100, max_attempts: int = 3) -> Failures:
    return Failures("annotate", shards, max_attempts)


class TestFailures:
    def test_one_bad_node_never_ends_a_pass(self) -> None:
        found = failures()
        for number in range(50):
            found.failed(f"{number:03d}", "bad", DISK_FULL, nodes=4)
        assert found.bad_nodes({"bad", "a", "b"}) == {"bad"}
        assert set(found.to_retry({"bad", "a", "b"}).values()) == {2}

    def test_a_fault_of_all_nodes_ends_it_with_the_workers_own_error(self) -> None:
        found = failures()
        found.failed("000", "a", DISK_FULL, nodes=2)
        found.failed("001", "a", DISK_FULL, nodes=2)
        with pytest.raises(OperationFailed) as error:
            found.failed("002", "b", DISK_FULL, nodes=2)
        assert error.value is DISK_FULL

    def test_a_large_share_of_failures_on_several_nodes_ends_it(self) -> None:
        found = failures()
        for number in range(30):
            found.succeeded(f"ok-{number}")
        for number in range(9):
            found.failed(f"{number:03d}", "ab"[number % 2], DISK_FULL, nodes=2)
        with pytest.raises(ShardsFailedError, match=r"annotate: 10 of 40 attempts failed; shard \d+ .* no space left"):
            found.failed("009", "b", DISK_FULL, nodes=2)

    def test_few_failures_among_many_successes_are_retried(self) -> None:
        found = failures()
        for number in range(60):
            found.succeeded(f"ok-{number}")
        for number in range(12):
            found.failed(f"{number:03d}", "ab"[number % 2], DISK_FULL, nodes=2)
        assert len(found.to_retry({"a", "b"})) == 12
        assert found.bad_nodes({"a", "b"}) == set()  # there would be no node left

    def test_a_shard_has_a_number_of_tries(self) -> None:
        found = failures(max_attempts=2)
        found.succeeded("ok")
        found.failed("000", "a", DISK_FULL, nodes=2)
        assert found.to_retry({"a", "b"}) == {"000": 2}
        found.failed("000", "b", DISK_FULL, nodes=2)
        assert found.to_retry({"a", "b"}) == {}
        with pytest.raises(ShardsFailedError, match="1 of 100 shards failed on every attempt; shard 000 after 2"):
            found.raise_if_any()

    @pytest.mark.parametrize("error", [UsageError("torch sees no GPU"), CheckFailed("another bundle")])
    def test_a_users_mistake_is_tried_again_only_on_another_node(self, error: Exception) -> None:
        found = failures()
        found.failed("000", "a", error, nodes=1)
        assert found.to_retry({"a"}) == {}
        assert found.to_retry({"a", "b"}) == {"000": 2}

    def test_a_shard_that_succeeds_later_is_forgotten(self) -> None:
        found = failures()
        found.failed("000", "a", DISK_FULL, nodes=2)
        found.succeeded("000")
        assert found.to_retry({"a", "b"}) == {}
        found.raise_if_any()


class TestMonitor:
    KEY = ("annotate", "000")
    OTHER = ("annotate", "001")

    @pytest.fixture
    def killed(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Actors that monitors have killed."""
        actors: list[Any] = []
        monkeypatch.setattr(monitor_module, "_kill", actors.append)
        return actors

    def after_100_s(self, actor: str) -> tuple[Monitor, list[float]]:
        """A silent worker of one actor and a worker with heartbeats of another or the same; with the clock."""
        now = [0.0]
        monitor = Monitor(60, lambda: now[0])
        monitor.begin(self.KEY, "a", 1, "silent")
        monitor.begin(self.OTHER, "a", 2, actor)
        for now[0] in (50.0, 100.0):
            monitor.beat(self.OTHER, 2, "infer", 7)
        return monitor, now

    @pytest.fixture
    def alive(self, monkeypatch: pytest.MonkeyPatch) -> set[str]:
        nodes = {"a", "b"}
        monkeypatch.setattr(monitor_module, "_is_alive", nodes.__contains__)
        return nodes

    def test_a_worker_that_never_gave_its_shard_back_has_died(self, alive: set[str]) -> None:
        monitor = Monitor(60)
        assert monitor.begin(self.KEY, "a", 1, "one") == (0, False)
        assert monitor.begin(self.KEY, "a", 2, "one") == (1, False)
        assert monitor.begin(self.KEY, "b", 1, "two") == (2, False)

    def test_a_lost_node_does_not_count(self, alive: set[str]) -> None:
        monitor = Monitor(60)
        monitor.begin(self.KEY, "a", 1, "one")
        alive.remove("a")
        assert monitor.begin(self.KEY, "b", 1, "two") == (0, False)

    def test_an_attempt_that_ended_in_an_error_is_no_death(self, alive: set[str]) -> None:
        monitor = Monitor(60)
        monitor.begin(self.KEY, "a", 1, "one")
        monitor.end(self.KEY)
        assert monitor.begin(self.KEY, "a", 2, "one") == (0, False)

    def test_a_restarted_actor_is_not_killed_for_the_shard_that_its_process_before_died_of(
        self, alive: set[str], killed: list[Any]
    ) -> None:
        monitor, _ = self.after_100_s("silent")  # its queue's next shard came before the retry
        assert [each.shard for each in monitor.check()] == ["001"]
        assert killed == []
        monitor.end(self.OTHER)
        assert monitor.begin(self.KEY, "a", 2, "silent") == (1, False)

    def test_after_a_stop_no_shard_begins(self, alive: set[str]) -> None:
        monitor = Monitor(60)
        monitor.stop()
        assert monitor.begin(self.KEY, "a", 1, "one") == (0, True)
        assert monitor.check() == []

    def test_a_worker_without_heartbeats_is_killed_and_one_with_them_is_not(
        self, alive: set[str], killed: list[Any]
    ) -> None:
        monitor, now = self.after_100_s("slow")
        assert [(each.shard, each.step, each.done) for each in monitor.check()] == [
            ("000", "start", 0), ("001", "infer", 7),
        ]  # fmt: skip
        assert killed == ["silent"]
        now[0] = 130.0
        monitor.check()
        assert killed == ["silent"]  # not again before its shard has begun anew


def test_a_shard_that_kills_all_its_workers_is_refused() -> None:
    with Attempt(deaths=GIVE_UP_AFTER - 1):
        pass
    with pytest.raises(OperationFailed, match="its worker process died 4 times"), Attempt(deaths=GIVE_UP_AFTER):
        pass


NODES: list[dict[str, float]] = [{"CPU": 16.0}, {"CPU": 16.0, "GPU": 1.0}, {"memory": 1.0}]


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (Resources(), 32),
        (Resources(cpus=3), 10),
        (Resources(gpus=0.25), 4),
        (Resources(gpus=1 / 3), 3),
        (Resources(cpus=16, gpus=0.5), 1),
    ],
)
def test_actors_that_fit(resources: Resources, expected: int) -> None:
    assert actors_that_fit(resources, NODES) == expected


def test_the_pool_is_bounded_by_what_the_cluster_may_grow_to() -> None:
    grows = ClusterSettings(max_cpus=256, max_gpus=4)
    assert most_actors(Resources(), grows) == 256
    assert most_actors(Resources(gpus=0.25), grows) == 16
    assert most_actors(Resources(max_workers=3), grows) == 3
    assert most_actors(Resources(), ClusterSettings()) is None


def test_a_pass_for_gpus_waits_for_them_only_where_they_may_come() -> None:
    gpu = Resources(gpus=0.5)
    with pytest.raises(UsageError, match=r"needs 0\.5 GPU and the cluster has 0: .* set cluster\.max_gpus"):
        check_feasible(gpu, ClusterSettings(max_cpus=64), NODES[:1])
    check_feasible(gpu, ClusterSettings(max_gpus=1), NODES[:1])
    check_feasible(gpu, ClusterSettings(), NODES)


def test_a_worker_larger_than_every_node_is_refused() -> None:
    with pytest.raises(UsageError, match="a worker needs 20 CPU and the largest node has 16"):
        check_feasible(Resources(cpus=20), ClusterSettings(), NODES)

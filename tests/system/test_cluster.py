"""Shards through real Ray actors: streaming, errors, dead workers, stalls."""

from __future__ import annotations

import itertools
import os
import platform
import time
from pathlib import Path
from typing import Any

import pytest

from mmva.errors import OperationFailed, UsageError
from mmva_platform.cluster import check_feasible, default_workers, ray_session
from mmva_platform.pool import StalledError, run_shards
from mmva_platform.settings import ClusterSettings
from mmva_platform.storage import StorageDenied

pytestmark = pytest.mark.slow


def make_worker(folder: str) -> Any:
    """The worker of these tests, made inside the function so that it travels by value."""

    class Worker:
        def __init__(self) -> None:
            self.made = time.time()

        def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
            action = item.get("action")
            if action == "denied":
                raise StorageDenied("s3://bucket/a: access denied")
            if action == "bug":
                raise KeyError("a bug keeps its traceback")
            if action == "sleep":
                time.sleep(item["seconds"])
            died = Path(folder) / "died"
            if action == "die once" and not died.exists():
                died.touch()
                os._exit(1)
            threads = os.environ["OMP_NUM_THREADS"]
            return {"number": item["number"], "at": time.time(), "threads": threads, "nested": [[1], [None, "a"]]}

    return Worker()


def run(items: list[dict[str, Any]], tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []

    def collect(result: dict[str, Any]) -> None:
        results.append({**result, "seen": time.time()})

    run_shards(
        items, make_worker, stage="test stage", on_result=collect,
        constructor_kwargs={"folder": str(tmp_path)}, **{"workers": 1, **options},
    )  # fmt: skip
    return results


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_finds_the_standard_librarys_platform() -> None:
    import ray

    @ray.remote(num_cpus=0.1)
    def system() -> str:
        import platform

        return platform.system()

    assert ray.get(system.remote()) == platform.system()


@pytest.mark.usefixtures("ray_cluster")
class TestRunShards:
    def test_results_stream_as_python_values_and_a_dead_worker_is_replaced(self, tmp_path: Path) -> None:
        items = [{"number": number, "action": "sleep", "seconds": 0.5} for number in range(8)]
        items[2]["action"] = "die once"
        results = run(items, tmp_path, workers=2)
        assert sorted(result["number"] for result in results) == list(range(8))
        assert {result["threads"] for result in results} == {"1"}
        assert results[0]["nested"] == [[1], [None, "a"]]
        first_seen = min(result["seen"] for result in results)
        assert first_seen < max(result["at"] for result in results)

    def test_expected_errors_arrive_as_they_were_raised(self, tmp_path: Path) -> None:
        with pytest.raises(StorageDenied) as error:
            run([{"number": 0}, {"number": 1, "action": "denied"}], tmp_path)
        assert str(error.value) == "s3://bucket/a: access denied"

    def test_a_bug_keeps_its_traceback(self, tmp_path: Path) -> None:
        with pytest.raises(Exception, match="a bug keeps its traceback") as error:
            run([{"number": 0, "action": "bug"}], tmp_path)
        assert not isinstance(error.value, (UsageError, OperationFailed))

    def test_a_stall_ends_with_the_name_of_the_stage(self, tmp_path: Path) -> None:
        items = [{"number": 0}, {"number": 1, "action": "sleep", "seconds": 40}]
        started = time.monotonic()
        with pytest.raises(StalledError, match=r"test stage: no progress for 5 s at \d of 2 shards"):
            run(items, tmp_path, stall_timeout_s=5)
        assert time.monotonic() - started < 40

    def test_another_sign_of_life_is_progress_too(self, tmp_path: Path) -> None:
        items = [{"number": 0, "action": "sleep", "seconds": 4}]
        options = {"stall_timeout_s": 0.5, "sign_of_life": itertools.count().__next__}
        assert [result["number"] for result in run(items, tmp_path, **options)] == [0]

    def test_what_does_not_fit_is_refused_before_it_hangs(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="use at most 6 workers"):
            run([{"number": number} for number in range(10)], tmp_path, workers=7)
        with pytest.raises(UsageError, match=r"at 0\.5 GPU need 1 GPUs, the cluster has 0"):
            run([{"number": number} for number in range(2)], tmp_path, workers=2, gpus_per_worker=0.5)
        check_feasible(6)
        assert 1 <= default_workers() <= 6

    def test_nothing_to_do_starts_nothing(self, tmp_path: Path) -> None:
        assert run([], tmp_path) == []

    def test_a_session_inside_a_session_uses_it_and_leaves_it(self) -> None:
        import ray

        with ray_session(ClusterSettings(num_cpus=64)) as info:
            assert (info.started, info.cpus, info.nodes) == (False, 4, 1)
        assert ray.is_initialized()


def test_an_address_where_nobody_answers_is_a_usage_error(tmp_path: Path) -> None:
    code = (
        "from mmva_platform.cluster import ray_session; from mmva_platform.settings import ClusterSettings\n"
        "from mmva.errors import UsageError\n"
        "try:\n"
        "    with ray_session(ClusterSettings(address='127.0.0.1:9')): pass\n"
        "except UsageError as error: print(error)\n"
    )
    assert "cluster.address 127.0.0.1:9: no Ray cluster answers there" in _python(code, tmp_path)


def test_a_private_session_stops_and_its_workers_find_both_packages(tmp_path: Path) -> None:
    code = (
        "import ray\n"
        "from mmva_platform.cluster import ray_session; from mmva_platform.settings import ClusterSettings\n"
        "with ray_session(ClusterSettings(num_cpus=2)) as info:\n"
        "    @ray.remote(num_cpus=0.5)\n"
        "    def where():\n"
        "        import mmva, mmva_platform\n"
        "        return mmva.__name__ + mmva_platform.__name__\n"
        "    print(info.started, info.cpus, ray.get(where.remote()))\n"
        "print(ray.is_initialized())\n"
    )
    assert _python(code, tmp_path).split() == ["True", "2.0", "mmvammva_platform", "False"]


def _python(code: str, folder: Path) -> str:
    """Output of code in a process of its own, where warnings are errors."""
    import subprocess
    import sys

    script = folder / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True, text=True, timeout=180, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout

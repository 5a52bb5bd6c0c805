"""Sessions: inside another, at an address, and private ones."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from mmva.errors import UsageError
from mmva_platform.cluster import check_feasible, ray_session
from mmva_platform.settings import ClusterSettings

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_finds_the_standard_librarys_platform() -> None:
    import ray

    @ray.remote(num_cpus=0.1)
    def system() -> str:
        import platform

        return platform.system()

    assert ray.get(system.remote()) == platform.system()


@pytest.mark.usefixtures("ray_cluster")
def test_a_session_inside_a_session_uses_it_and_leaves_it() -> None:
    import ray

    with ray_session(ClusterSettings(num_cpus=64)) as info:
        assert (info.started, info.cpus, info.nodes) == (False, 4, 1)
    assert ray.is_initialized()


@pytest.mark.usefixtures("ray_cluster")
def test_training_workers_that_do_not_fit_are_refused_before_they_hang() -> None:
    check_feasible(6, 0.5)
    with pytest.raises(UsageError, match=r"7 workers at 0\.5 CPU .* need 4\.5 CPUs, the cluster has 4: use at most 6"):
        check_feasible(7, 0.5)


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

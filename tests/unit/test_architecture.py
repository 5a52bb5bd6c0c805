"""The house keeps its shape: `platform/` is no package, imports go one way, imports are quick, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

# Each room may import itself, the method, and the rooms before it.
ROOMS = [
    "settings",
    "pages",
    "monitoring",
    "storage",
    "progress",
    "cluster",
    "draining",
    "bulk",
    "submission",
    "datasets",
    "training",
    "tracking",
    "annotation",
    "search",
    "reporting",
    "serving",
    "doctor",
]
FLOWS = ["workflows", "reproduction", "quickstart", "cli"]


@cache
def _imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _sources(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, folder
    return found


def test_platform_is_a_source_root_and_never_a_package(repository: Path) -> None:
    assert not (repository / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("folder", [".", "jobs", "platform"])
def test_the_standard_librarys_platform_is_not_shadowed(repository: Path, folder: str) -> None:
    code = "import sys; sys.path.insert(0, ''); import platform; print(platform.system())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository / folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_method_knows_no_ray_no_mlflow_no_platform(repository: Path) -> None:
    for path in _sources(repository / "mmva"):
        roots = {name.partition(".")[0] for name in _imports(path)}
        assert not roots & {"ray", "mlflow", "boto3", "mmva_platform"}, path


def test_only_storage_knows_s3(repository: Path) -> None:
    for path in _sources(repository / "platform" / "mmva_platform"):
        if "boto3" in {name.partition(".")[0] for name in _imports(path)}:
            assert "storage" in path.relative_to(repository / "platform" / "mmva_platform").parts[0], path


def test_only_tracking_knows_mlflow(repository: Path) -> None:
    for path in _sources(repository / "platform" / "mmva_platform"):
        if "mlflow" in {name.partition(".")[0] for name in _imports(path)}:
            assert path.relative_to(repository / "platform" / "mmva_platform").parts[0] == "tracking", path


def test_only_the_table_of_an_annotation_knows_deltalake(repository: Path) -> None:
    package = repository / "platform" / "mmva_platform"
    known = {path for path in _sources(package) if "deltalake" in {name.partition(".")[0] for name in _imports(path)}}
    assert known == {package / "annotation" / "table.py"}


def test_rooms_import_in_one_direction(repository: Path) -> None:
    order = {room: rank for rank, room in enumerate([*ROOMS, *FLOWS])}
    package = repository / "platform" / "mmva_platform"
    for path in _sources(package):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in order, f"{path}: a new room; give it its place in this test"
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] == "mmva_platform" and len(parts) > 1 and parts[1] in order:
                assert order[parts[1]] <= order[room], f"{path} imports {name}"


def test_no_package_makes_ray_slow_to_import() -> None:
    """With rfc3987-syntax installed, jsonschema builds a grammar for 4 s of CPU time in every process of Ray."""
    code = "import sys, ray; print('rfc3987_syntax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_jobs_are_thin(repository: Path) -> None:
    for path in _sources(repository / "jobs"):
        assert len(path.read_text().splitlines()) <= 40, path


def test_no_file_is_over_500_lines(repository: Path) -> None:
    for folder in ("mmva", "platform", "jobs", "tests", "benchmarks"):
        for path in _sources(repository / folder):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path


@pytest.mark.parametrize("module", ["mmva", "mmva_platform.cli.main", "mmva_platform.settings"])
def test_importing_starts_nothing_heavy(module: str) -> None:
    heavy = ("torch", "ray", "mlflow", "transformers", "deltalake")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The house keeps its shape: `platform/` is no package, imports go one way, imports are quick, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
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
def _import_nodes(path: Path) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _imports(path: Path) -> Iterator[str]:
    for node in _import_nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif node.module and node.level == 0:
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below a node, without blocks for type checkers."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from _at_run_time(child)


def _modules(repository: Path) -> dict[str, Path]:
    """Our modules by their dotted names."""
    roots = [(repository, "mmva"), (repository / "platform", "mmva_platform")]
    files = [(path.relative_to(root), path) for root, top in roots for path in _sources(root / top)]
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in files}


def _import_graph(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules that it imports, at once or in a function. `from package import name` is an import of the
    module package.name if there is one, else of the package.
    """
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = set()
        for node in _at_run_time(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found |= {whole if whole in modules else node.module for whole in names.values()}
        graph[module] = found & modules.keys()
    return graph


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
    assert known == {package / "annotation" / "table" / "delta.py"}


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


@pytest.fixture(scope="module")
def graph(repository: Path) -> dict[str, set[str]]:
    return _import_graph(_modules(repository))


def _check_acyclic(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports go in a circle: " + " <- ".join(error.args[1]))


def test_no_imports_go_in_a_circle(graph: dict[str, set[str]]) -> None:
    """Delayed imports count: they hide a circle, and do not remove it."""
    assert {"mmva.errors", "mmva_platform.settings"} <= graph["mmva_platform.workflows"]
    assert "mmva_platform.training.trainer" in graph["mmva_platform.workflows"]  # imported in functions only
    _check_acyclic(graph)


def test_no_two_folders_of_the_method_need_each_other(graph: dict[str, set[str]]) -> None:
    folders: dict[str, set[str]] = {}
    for module, imported in graph.items():
        own = _folder(module)
        folders.setdefault(own, set()).update({_folder(name) for name in imported if name.startswith("mmva.")} - {own})
    _check_acyclic(folders)


def _folder(module: str) -> str:
    """The part of mmva that a module is in: a folder, or the module itself."""
    return ".".join(module.split(".")[:2])


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

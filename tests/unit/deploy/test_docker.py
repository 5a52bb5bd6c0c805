"""deploy/docker/Dockerfile as text: what a linter would look for. CI has no engine to build it with."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage."""
    text = re.sub(r"^#.*\n", "", (ROOT / "deploy" / "docker" / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, list[tuple[str, str]]] = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            name = rest.split()[-1]
            found[name] = [("FROM", rest)]
        elif word and found:
            found[name].append((word, rest))
    return found


def test_the_targets_run_as_a_user_and_say_what_they_run(stages: dict[str, list[tuple[str, str]]]) -> None:
    for target in ("cpu", "gpu"):
        words = dict(stages[target])
        assert words["USER"] == "1000:1000"
        assert words["CMD"].startswith("[")
        assert words["FROM"].startswith("base ")
        assert not [rest for word, rest in stages[target] if word == "RUN"]  # tools stay in the build stages


def test_versions_are_locked_and_layers_are_lean(stages: dict[str, list[tuple[str, str]]]) -> None:
    for name, instructions in stages.items():
        for word, rest in instructions:
            assert word != "ADD", name
            for command in re.findall(r"pip install [^&;]*", rest):
                assert re.search(r"--constraint constraints\.txt|--no-deps", command), command
            if "apt-get install" in rest:
                assert "--no-install-recommends" in rest
                assert "rm -rf /var/lib/apt/lists/*" in rest
    assert dict(stages["build"])["ENV"].startswith("PIP_NO_CACHE_DIR=1")


def test_no_secret_in_a_layer_and_no_floating_tag(stages: dict[str, list[tuple[str, str]]]) -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    assert not re.search(r"^(ARG|ENV) .*(TOKEN|PASSWORD|SECRET|_KEY|INDEX_URL)", text, re.MULTILINE)
    assert "latest" not in text
    assert f"ray{metadata.version('ray')}" in text
    for name, [(_, image), *_] in stages.items():
        assert image.split()[0] in {"${PYTHON_IMAGE}", *stages}, name


def test_what_is_copied_exists_and_the_context_lets_it_through(stages: dict[str, list[tuple[str, str]]]) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for instructions in stages.values():
        for word, rest in instructions:
            if word == "COPY" and "--from" not in rest:
                *sources, _ = [part for part in rest.split() if not part.startswith("--")]
                for source in sources:
                    assert (ROOT / source).exists(), source
                    assert source in allowed, source


@pytest.mark.parametrize(("packages", "code"), [("torch 2.13.0", 0), ("torch 2.13.0\nnvidia-cublas 13.1", 1)])
def test_the_cpu_image_has_no_cuda(
    stages: dict[str, list[tuple[str, str]]], tmp_path: Path, packages: str, code: int
) -> None:
    check = next(re.search(r"if pip list.*?fi\b", rest) for word, rest in stages["build-cpu"] if word == "RUN")
    assert check
    pip = tmp_path / "pip"
    pip.write_text(f"#!/bin/sh\necho '{packages}'\n")
    pip.chmod(0o755)
    done = subprocess.run(["sh", "-c", check[0]], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert done.returncode == code

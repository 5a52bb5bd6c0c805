"""Runs the blocks of a document that are marked `bash`, as one session in one folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ACTIVATE = "source .venv/bin/activate\n"
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of the page's blocks that are run, in their order."""
    return _BLOCK.findall((REPOSITORY / page).read_text(encoding="utf-8"))


def run_page(
    page: str,
    folder: Path,
    *,
    replaced: Mapping[str, str] | None = None,
    environment: Mapping[str, str] = os.environ,
    timeout_s: float = 540,
) -> str:
    """Run the page's blocks as written, but for what is `replaced`; returns standard output.

    Each key of `replaced` must be on the page. This process's environment stands in for the one that `make` installs.
    """
    texts = []
    for language, text in blocks(page):
        texts.append(text if language == "bash" else f"python - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON\n")
    session = "".join(texts).replace(ACTIVATE, "")
    for old, new in (replaced or {}).items():
        assert old in session, f"{page}: {old}"
        session = session.replace(old, new)
    source = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "platform")])
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", session],
        cwd=folder, env={"PYTHONPATH": source} | dict(environment) | {"PATH": path}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said, errors = shell.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(shell.pid, signal.SIGTERM)  # servers that the page started, too
        said, errors = shell.communicate(timeout=60)
        pytest.fail(f"{page}: not done after {timeout_s:g} s\n{said}\n{errors}")
    assert shell.returncode == 0, f"{page}\n{said}\n{errors}"
    return said

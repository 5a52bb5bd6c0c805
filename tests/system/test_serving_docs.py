"""docs/serving.md is true: its blocks run as one session of a new user, from a key to a search."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .serving_process import REPOSITORY, free_port, picture

pytestmark = pytest.mark.system
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_session_of_a_new_user(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "demo-model")
    (tmp_path / "media").mkdir()
    for number in range(4):
        picture(tmp_path / "media" / f"{number}.png", number)
    blocks = BLOCK.findall((REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8"))
    assert len(blocks) == 4
    text = "\n".join(blocks).replace("8123", str(free_port()))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    source = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "platform")])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "PYTHONPATH": source, "RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "outside-roots" in done.stdout
    assert len(json.loads((tmp_path / "hits.json").read_text())["hits"]) == 3
    assert (tmp_path / "report.html").stat().st_size > 10_000

"""docs/serving.md is true: its blocks run as one session of a new user, from a key to a search."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from .documented import blocks, run_page
from .serving_process import free_port, picture

pytestmark = pytest.mark.system


def test_the_session_of_a_new_user(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "demo-model")
    (tmp_path / "media").mkdir()
    for number in range(4):
        picture(tmp_path / "media" / f"{number}.png", number)
    assert len(blocks("docs/serving.md")) == 4
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    replaced = {"8123": str(free_port())}
    said = run_page("docs/serving.md", tmp_path, replaced=replaced, environment=environment)
    assert "outside-roots" in said
    assert len(json.loads((tmp_path / "hits.json").read_text())["hits"]) == 3
    assert (tmp_path / "report.html").stat().st_size > 10_000

"""Items that kill or hang the worker that decodes them: found, quarantined, and nobody else's loss.

The decoder is broken from outside, by a sitecustomize.py on PYTHONPATH, in every process that finds it there: a picture
of one size kills its process as a crash in a native library would, one of another size holds the interpreter for ever.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmva_platform.annotation import open_annotation, verify
from mmva_platform.settings import AnnotationSettings, ClusterSettings, Settings

pytestmark = pytest.mark.slow

KILLS, HANGS = (61, 67), (67, 61)
SITECUSTOMIZE = f"""
import os, re, signal
from PIL import ImageFile

original = ImageFile.ImageFile.load

def load(self):
    if self.size == {KILLS}:
        os.kill(os.getpid(), signal.SIGKILL)
    if self.size == {HANGS}:
        re.match(r"(a+)+$", 80 * "a" + "b")
    return original(self)

ImageFile.ImageFile.load = load
"""
RUN = """
import json, sys
from mmva_platform.annotation import annotate
from mmva_platform.settings import Settings

catalog, model, out, settings = sys.argv[1:]
options = {"workers": 1, "shard_items": 5, "engine": "torch"}
summary = annotate(catalog, model, out, Settings.model_validate_json(settings), **options)
print(json.dumps(summary.to_json()))
"""


@pytest.fixture
def poison(tmp_path: Path) -> str:
    """A PYTHONPATH with the broken decoder."""
    folder = tmp_path / "poison"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "catalog"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sizes = {2: KILLS, 3: HANGS}
    for number in range(8):
        width, height = sizes.get(number, (80, 64))
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    (folder / "8.png").write_bytes(b"no picture")
    (folder / "words.txt").write_text("A calm piece for solo piano.")
    return folder


def settings_of(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        cluster=ClusterSettings(address="local", num_cpus=2, object_store_mb=128),
        annotation=AnnotationSettings(item_timeout_s=3.0),
    )


def causes(rows: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["stage"], row["error"]) for row in rows}


EXPECTED = {
    "2.png": ("decode", "killed-worker"),
    "3.png": ("decode", "timed-out"),
    "8.png": ("decode", "not-an-image"),
}


def test_a_run_finds_them_by_itself(
    tiny_bundle: Path, catalog: Path, tmp_path: Path, poison: str, repository: Path
) -> None:
    settings, out = settings_of(tmp_path), tmp_path / "out"
    path = os.pathsep.join([poison, str(repository), str(repository / "platform")])
    command = [sys.executable, "-c", RUN, str(catalog), str(tiny_bundle), str(out), settings.model_dump_json()]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["items"], summary["ok"], summary["quarantined"]) == (10, 7, 3)
    made = open_annotation(str(out))
    assert causes(made.table(status="quarantined").to_pylist()) == EXPECTED
    annotated = made.table(["id"])["id"].to_pylist()
    assert sorted(annotated) == ["0.png", "1.png", "4.png", "5.png", "6.png", "7.png", "words.txt"]
    assert verify(str(out), settings).problems == ()

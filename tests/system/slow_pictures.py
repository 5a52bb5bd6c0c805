"""Pictures of one size that take their time to decode, by waiting: a run of some length that leaves the CPUs alone."""

from __future__ import annotations

import os
from pathlib import Path

SIZE = (40, 32)
_SITECUSTOMIZE = """
import time
from PIL import ImageFile

original = ImageFile.ImageFile.load

def load(self):
    if self.size == {size}:
        time.sleep({seconds})
    return original(self)

ImageFile.ImageFile.load = load
"""


def slow_path(folder: Path, seconds: float, python_path: str) -> str:
    """PYTHONPATH for processes in which a picture of SIZE takes so many seconds."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(size=SIZE, seconds=seconds))
    return os.pathsep.join([str(folder), python_path])

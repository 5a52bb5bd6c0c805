"""Pictures of certain sizes that kill or hang the process that decodes them, as a fault in a native library would.

The decoder is broken by a sitecustomize.py on PYTHONPATH, in every process that finds it there.
"""

from __future__ import annotations

import os
from pathlib import Path

KILLS, HANGS, KILLS_ONCE = (61, 67), (67, 61), (53, 59)  # width and height
_SITECUSTOMIZE = """
import os, re, signal
from PIL import ImageFile

original = ImageFile.ImageFile.load

def load(self):
    if self.size == {once}:
        try:
            os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    if self.size == {kills}:
        os.kill(os.getpid(), signal.SIGKILL)
    if self.size == {hangs}:
        re.match(r"(a+)+$", 80 * "a" + "b")  # holds the interpreter, practically for ever
    return original(self)

ImageFile.ImageFile.load = load
"""


def poison_path(folder: Path) -> str:
    """PYTHONPATH for processes in which pictures of KILLS, HANGS and (the first of all) KILLS_ONCE do so."""
    folder.mkdir()
    text = _SITECUSTOMIZE.format(kills=KILLS, hangs=HANGS, once=KILLS_ONCE, marker=str(folder / "killed-once"))
    (folder / "sitecustomize.py").write_text(text)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])

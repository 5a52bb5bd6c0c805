"""Where a quickstart writes: a fresh folder each time, with a clear layout."""

import itertools
from pathlib import Path

from mmva.errors import UsageError

_DEFAULT = "mmva-quickstart"


class Workspace:
    """Paths of one quickstart; `root` is also the home of its runs and its registry."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.published = root / "imemnet-lookalike"  # generated, in the published layout
        self.dataset = root / "dataset"
        self.catalog = root / "catalog"  # media that the model never trained on
        self.annotation = root / "annotation"
        self.report = root / "report.html"


def fresh_workspace(asked_for: Path | None, parent: Path | None = None) -> Workspace:
    """A folder that no earlier run wrote to: the given one, else mmva-quickstart, mmva-quickstart-2, ...

    Raises UsageError if the given folder is not empty; earlier output is never touched.
    """
    root = asked_for
    if root is None:
        names = itertools.chain([_DEFAULT], (f"{_DEFAULT}-{number}" for number in itertools.count(2)))
        root = next(place for name in names if not (place := (parent or Path()) / name).exists())
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"--workdir {root}: is not empty; give a new folder, or remove that one yourself")
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    return Workspace(root)

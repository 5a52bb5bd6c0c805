"""Where a quickstart writes: a fresh folder each time, laid out so that a person finds everything."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from mmva.errors import UsageError

_DEFAULT = "mmva-quickstart"


@dataclass(frozen=True)
class Workspace:
    """Paths of one quickstart; `root` is also the home of its runs and its registry."""

    root: Path

    @property
    def published(self) -> Path:
        """The generated look-alike, in the published layout."""
        return self.root / "imemnet-lookalike"

    @property
    def dataset(self) -> Path:
        """The imported dataset with its embeddings."""
        return self.root / "dataset"

    @property
    def catalog(self) -> Path:
        """Media that the model never trained on."""
        return self.root / "catalog"

    @property
    def annotation(self) -> Path:
        """The published annotation of the catalog."""
        return self.root / "annotation"

    @property
    def report(self) -> Path:
        """The page a person looks at."""
        return self.root / "report.html"


def fresh_workspace(asked_for: Path | None, parent: Path | None = None) -> Workspace:
    """A folder that no earlier run wrote to: the one asked for, else mmva-quickstart, mmva-quickstart-2, ...

    Raises:
        UsageError: If the folder asked for holds something already; earlier output is never touched.
    """
    if asked_for is not None:
        if asked_for.exists() and (not asked_for.is_dir() or any(asked_for.iterdir())):
            raise UsageError(f"--workdir {asked_for}: is not empty; name a new folder, or remove that one yourself")
        root = asked_for
    else:
        root = _first_free(parent or Path())
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    return Workspace(root)


def _first_free(parent: Path) -> Path:
    names = itertools.chain([_DEFAULT], (f"{_DEFAULT}-{number}" for number in itertools.count(2)))
    return next(parent / name for name in names if not (parent / name).exists())

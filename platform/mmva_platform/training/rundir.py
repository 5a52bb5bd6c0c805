"""The run directory: the only truth about a training run. Created once, never reused silently, readable without us.

`<runs_dir>/<run_name>/`: recipe.json and run.json (written first), checkpoints/, history.json,
evaluation.json, bundle/ (written last; with it the run is finished).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmva.errors import UsageError
from mmva_platform.settings import Config, validate
from mmva_platform.training.recipe import Recipe, fresh_name

if TYPE_CHECKING:
    from mmva_platform.datasets.features import Features

# Where a run is computed may change when it continues; what is computed may not.
_MAY_CHANGE = frozenset({"name", "workers", "cpus_per_worker"})


class RunFacts(Config):
    """What a run was started on; a resumed run must find the same."""

    dataset_digest: str
    fingerprints: dict[str, str]

    @classmethod
    def of(cls, features: Features) -> RunFacts:
        """Facts of a run on these features."""
        return cls(dataset_digest=features.digest, fingerprints={str(m): f for m, f in features.fingerprints.items()})


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def backbones(self) -> Path:
        """Where media mode leaves the layers that it tuned, unless the recipe says otherwise."""
        return self.path / "backbones"

    @property
    def bundle(self) -> Path:
        """Where the finished model is."""
        return self.path / "bundle"

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, replacing it in one step."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(self.path / name)

    def read(self, name: str) -> Any:
        """Read a JSON file of the run.

        Raises:
            UsageError: If it is not there or not JSON: this is no run directory.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path}: not a training run ({name}: {error})") from None


def create_run(runs_dir: Path, recipe: Recipe, facts: RunFacts) -> RunDirectory:
    """A new run directory with its recipe.

    Raises:
        UsageError: If a run of this name exists.
    """
    run = RunDirectory(runs_dir / (recipe.name or fresh_name(recipe.preset)))
    runs_dir.mkdir(parents=True, exist_ok=True)
    try:
        run.path.mkdir()
    except FileExistsError:
        raise UsageError(
            f"run {run.name!r} exists already; continue it with --resume {run.name}, or use another name"
        ) from None
    run.write("run.json", facts.model_dump(mode="json"))
    run.write("recipe.json", recipe.model_dump(mode="json"))
    return run


def resume_run(runs_dir: Path, name: str, recipe: Recipe, facts: RunFacts) -> RunDirectory:
    """The directory of a run to continue, after checking that it would compute the same.

    Raises:
        UsageError: If there is no such run, it is finished, or recipe, dataset or embeddings differ from its own.
    """
    run = RunDirectory(runs_dir / name)
    if run.path.parent != runs_dir or not name or not run.path.is_dir():
        raise UsageError(f"--resume {name}: no such run in {runs_dir}")
    if run.bundle.exists():
        raise UsageError(f"--resume {name}: this run is finished; its model is {run.bundle}")
    same_recipe(run, recipe)
    _same(name, "the data", validate(RunFacts, run.read("run.json"), f"{run.path}/run.json"), facts)
    return run


def same_recipe(run: RunDirectory, recipe: Recipe) -> None:
    """UsageError if the recipe would compute something else than the run's own."""
    _same(run.name, "the recipe", validate(Recipe, run.read("recipe.json"), f"{run.path}/recipe.json"), recipe)


def _same(name: str, what: str, before: Config, now: Config) -> None:
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    for key in sorted(old.keys() - _MAY_CHANGE):
        if old[key] != new[key]:
            raise UsageError(
                f"--resume {name}: {what} changed ({key}: {old[key]!r} then, {new[key]!r} now); "
                "start a new run for it, or give the run's own recipe.json"
            )

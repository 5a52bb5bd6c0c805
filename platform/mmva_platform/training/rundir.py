"""The run directory: the only record of a training run, on any storage. It is created once and never reused silently.

`<runs>/<name>/`: recipe.json and run.json (written first), checkpoint_*/ (Ray Train's), history.json, evaluation.json,
bundle/ (written last: then the run is finished). The bundle is made on this machine, then copied to the storage.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmva.errors import UsageError
from mmva_platform.settings import Config, Settings, validate
from mmva_platform.storage import StorageNotFound, open_storage
from mmva_platform.training.distributed.checkpoints import checkpoint_folders
from mmva_platform.training.recipe import Recipe, fresh_name

if TYPE_CHECKING:
    from mmva_platform.datasets.features import Features

# Options that may change on resume: where it computes and with how much memory, but not what.
_MAY_CHANGE: Final = (
    "name", "workers", "cpus_per_worker", "checkpoint.every_s", "checkpoint.keep", "media.pieces", "media.recompute",
    "media.loaders", "media.compile",
)  # fmt: skip
_RAY_SNAPSHOT: Final = "checkpoint_manager_snapshot.json"


class RunFacts(Config):
    """The data of a run; a resumed run must find the same."""

    dataset_digest: str
    fingerprints: dict[str, str]

    @classmethod
    def of(cls, features: Features) -> RunFacts:
        """From the features that a run trains on."""
        return cls(dataset_digest=features.digest, fingerprints={str(m): f for m, f in features.fingerprints.items()})


class RunDirectory:
    """One run: `storage` has its files; `path` is its folder on this machine, with at least the bundle."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.storage = open_storage(f"{settings.runs_uri}/{name}", settings.storage)
        here = self.storage.local_path("run.json")
        self._local = here is not None
        self.path = settings.home.resolve() / "runs" / name if here is None else here.parent

    @property
    def bundle(self) -> Path:
        """Where the finished model is on this machine."""
        return self.path / "bundle"

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, replacing it in one step."""
        self.storage.write(name, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())

    def read(self, name: str) -> Any:
        """Read a JSON file of the run. Raises UsageError if it is missing or not JSON (not a run directory)."""
        try:
            return json.loads(self.storage.read(name))
        except (StorageNotFound, ValueError) as error:
            raise UsageError(f"{self.storage.uri}: not a training run ({name}: {error})") from None

    def finished(self) -> bool:
        """Whether the run has its bundle; a bundle in remote storage is fetched."""
        if not self.storage.exists("bundle/SHA256SUMS"):
            return False
        if not self._local:
            for entry in self.storage.list("bundle/"):
                target = self.path / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self.storage.read(entry.path))
        return True

    def publish_bundle(self) -> None:
        """Copy the bundle to the run's storage, its digests last."""
        if not self._local:
            for path in sorted(self.bundle.rglob("*"), key=lambda path: path.name == "SHA256SUMS"):
                if path.is_file():
                    self.storage.write(path.relative_to(self.path).as_posix(), path.read_bytes())


def create_run(settings: Settings, recipe: Recipe, facts: RunFacts) -> RunDirectory:
    """Create a run directory with its recipe. Raises UsageError if a run of this name exists."""
    run = RunDirectory(recipe.name or fresh_name(recipe.preset), settings)
    if not run.storage.put_if_absent("run.json", (json.dumps(facts.model_dump(mode="json")) + "\n").encode()):
        raise UsageError(f"run {run.name!r} exists already; continue it with --resume {run.name}, or use another name")
    run.write("recipe.json", recipe.model_dump(mode="json"))
    return run


def find_run(settings: Settings, name: str) -> RunDirectory:
    """The directory of a run. Raises UsageError if there is no such run."""
    try:
        Recipe(name=name, dataset="any")
        run = RunDirectory(name, settings)
        found = run.storage.exists("run.json")
    except ValueError:
        found = False
    if not found:
        raise UsageError(f"--resume {name}: no such run in {settings.runs_uri}")
    return run


def stored_recipe(run: RunDirectory) -> dict[str, Any]:
    """The run's own recipe, to which a resumed run's changes are applied."""
    return {**run.read("recipe.json"), "name": run.name}


def resume_run(settings: Settings, name: str, recipe: Recipe, facts: RunFacts) -> RunDirectory:
    """The directory of a run to continue. Raises UsageError if it is missing or finished, or the recipe changed."""
    run = find_run(settings, name)
    if run.finished():
        raise UsageError(f"--resume {name}: this run is finished; its model is {run.bundle}")
    same_recipe(run, recipe)
    _same(name, "the data", run_facts(run), facts)
    files, path = run.storage.filesystem()
    if next(iter(run.storage.list("checkpoints/")), None) is not None:
        raise UsageError(
            f"--resume {name}: its checkpoints were written by an earlier version of mmva; start a new run with its "
            "recipe.json"
        )
    for folder in checkpoint_folders(files, path)[: -recipe.checkpoint.keep]:
        files.delete_dir(folder)
    run.storage.delete(_RAY_SNAPSHOT)  # a killed driver may have truncated it; checkpoints are checked when read
    return run


def run_facts(run: RunDirectory) -> RunFacts:
    """The data that the run was started on."""
    return validate(RunFacts, run.read("run.json"), f"{run.storage.uri}/run.json")


def same_recipe(run: RunDirectory, recipe: Recipe) -> None:
    """Raises UsageError if the recipe would compute something else than the run's own."""
    own = validate(Recipe, stored_recipe(run), f"{run.storage.uri}/recipe.json")
    _same(run.name, "the recipe", own, recipe)


def _same(name: str, what: str, before: Config, now: Config) -> None:
    old, new = (dict(flat(config.model_dump(mode="json"))) for config in (before, now))
    for key in sorted(old.keys() | new.keys()):
        if key not in _MAY_CHANGE and old.get(key) != new.get(key):
            raise UsageError(
                f"--resume {name}: {what} changed ({key}: {old.get(key)!r} then, {new.get(key)!r} now); leave it out, "
                "or start a new run for it"
            )


def flat(tree: Mapping[str, Any], prefix: str = "", separator: str = ".") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping, with joined keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}{separator}", separator)
        else:
            yield f"{prefix}{key}", value


def git_commit() -> str | None:
    """Commit of the running code, None outside a checkout; ends in "-dirty" if tracked files were changed."""
    head = _git("rev-parse", "HEAD")
    return head and head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        return None

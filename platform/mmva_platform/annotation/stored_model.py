"""The models' files next to the table, so that a resume needs neither the registry nor the model's folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmva.bundle import read_bundle_info
from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.plan import INTERNAL, ModelInfo
from mmva_platform.storage import Storage


def store_bundle(storage: Storage, bundle_dir: Path, model: ModelInfo) -> None:
    """Put a bundle's files into the run, below its digest: a driver with another model puts its own elsewhere."""
    for file in sorted(bundle_dir.iterdir()):
        storage.put_if_absent(f"{_folder(model)}{file.name}", file.read_bytes())


@contextmanager
def stored_bundle(storage: Storage, model: ModelInfo) -> Iterator[Path]:
    """The bundle of a run as a temporary local folder. Raises CheckFailed if its files are missing or not the planned
    ones.
    """
    with tempfile.TemporaryDirectory(prefix="mmva-bundle-") as name:
        for entry in storage.list(_folder(model)):
            (Path(name) / entry.path.rpartition("/")[2]).write_bytes(storage.read(entry.path))
        try:
            found = read_bundle_info(name).digest
        except (UsageError, CheckFailed) as error:
            raise CheckFailed(f"{storage.join(_folder(model).rstrip('/'))}: not the run's model ({error})") from None
        if found != model.digest:
            raise CheckFailed(
                f"{storage.join(_folder(model).rstrip('/'))}: its digest is {found[:12]}, planned was "
                f"{model.digest[:12]}"
            )
        yield Path(name)


def _folder(model: ModelInfo) -> str:
    return f"{INTERNAL}/model/{model.digest[:16]}/"

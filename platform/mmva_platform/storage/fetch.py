"""Copies a folder of any storage to this machine, for libraries that can only read local paths."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from mmva.errors import UsageError
from mmva.files import make_folder_once, sha256_hex
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import Entry, Storage, open_storage
from mmva_platform.storage.base import checked

_CHUNK_BYTES: Final = 8 * 2**20


def folder_fetcher(settings: Settings) -> Callable[[str], Path]:
    """Return fetch_folder with the settings' cache and credentials, for mmva.backbones.load_encoder. Picklable."""
    return partial(fetch_folder, cache=settings.home.resolve() / "cache" / "folders", settings=settings.storage)


def fetch_folder(uri: str, cache: Path, settings: StorageSettings | None = None) -> Path:
    """Local folder with the files at a URI; remote files are copied into the cache, once for each machine.

    The copy is keyed by the URI and its listing, so a changed file makes a new copy; it appears complete or not at all.
    A local folder is returned unchanged. Raises UsageError if there are no files at the URI, StorageError if they
    cannot be read or a key is not a plain path.
    """
    storage = open_storage(uri, settings)
    entries = list(storage.list())
    if not entries:
        raise UsageError(f"{uri}: no files there")
    if storage.local_path(entries[0].path) is not None:
        return Path(storage.uri)
    target = cache / sha256_hex(repr((uri, entries)).encode())[:32]
    make_folder_once(target, partial(_copy, storage, entries))
    return target


def _copy(storage: Storage, entries: list[Entry], folder: Path) -> None:
    for entry in entries:
        target = folder / checked(entry.path)  # a key such as "../x" would leave the folder
        target.parent.mkdir(parents=True, exist_ok=True)
        with storage.open(entry.path) as source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK_BYTES)

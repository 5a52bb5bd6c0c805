"""A folder of any storage as a folder of this machine, for libraries that read paths only."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmva.errors import UsageError
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import open_storage


def folder_fetcher(settings: Settings) -> Callable[[str], Path]:
    """fetch_folder with the settings' cache and credentials: the `fetch` of mmva.backbones.load_encoder. Picklable."""
    return partial(fetch_folder, cache=settings.home.resolve() / "cache" / "folders", settings=settings.storage)


def fetch_folder(uri: str, cache: Path, settings: StorageSettings | None = None) -> Path:
    """Local folder with the files at a URI; remote ones are copied once into the cache.

    The copy is keyed by the URI and its listing, so a changed file makes a new copy. A folder appears whole or not
    at all.

    Raises:
        UsageError: If there are no files at the URI.
        StorageError: If they cannot be read.
    """
    storage = open_storage(uri, settings)
    entries = list(storage.list())
    if not entries:
        raise UsageError(f"{uri}: no files there")
    first = storage.local_path(entries[0].path)
    if first is not None:
        return Path(storage.uri)
    key = hashlib.sha256(repr((uri, entries)).encode()).hexdigest()[:32]
    target = cache / key
    if target.is_dir():
        return target
    making = cache / f".{key}-{uuid.uuid4().hex}"
    try:
        for entry in entries:
            file = making / entry.path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(storage.read(entry.path))
        try:
            making.rename(target)
        except OSError:  # another process was first; its copy is as good
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target

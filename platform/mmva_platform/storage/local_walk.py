"""Walking a local folder of any size in order of path."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmva.files import TEMPORARY
from mmva_platform.storage.base import Entry, OnSkip, is_utf8


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder whose entries are being read: its path below the root, and device and inode of it and its parents."""

    path: str
    entries: Iterator[os.DirEntry[str]]
    identities: frozenset[tuple[int, int]]


def walk_folder(root: Path, prefix: str, on_skip: OnSkip) -> Iterator[Entry]:
    """The regular files below a folder whose relative path starts with `prefix`, in the order of the paths' bytes.

    Links to places below the root are followed. An entry that cannot be listed is reported to `on_skip`. Raises OSError
    if the folder that the prefix names exists and cannot be listed.
    """
    start = prefix.rpartition("/")[0]
    if not (root / start).is_dir():
        return
    real_root = Path(os.path.realpath(root))
    folders = [_opened(root, start, (root / start).stat(), frozenset())]
    while folders:
        folder = folders[-1]
        entry = next(folder.entries, None)
        if entry is None:
            folders.pop()
            continue
        path = f"{folder.path}/{entry.name}" if folder.path else entry.name
        if not path.startswith(prefix) or entry.name.startswith(TEMPORARY):
            continue
        try:
            state = entry.stat()
            reason = _reason_to_skip(entry, state, real_root, folder)
            if reason is None and stat.S_ISDIR(state.st_mode):
                folders.append(_opened(root, path, state, folder.identities))
                continue
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not entry.is_symlink():
                continue  # deleted in the meantime
            reason = _explained(error)
        if reason is None:
            yield Entry(path, state.st_size, str(state.st_mtime_ns))
        else:
            on_skip(path, reason)


def _opened(root: Path, path: str, state: os.stat_result, parents: frozenset[tuple[int, int]]) -> _Folder:
    with os.scandir(root / path) as entries:
        return _Folder(path, iter(sorted(entries, key=_order)), parents | {_identity(state)})


def _order(entry: os.DirEntry[str]) -> bytes:
    """Sort a folder as the paths in it ("name/"), so that full paths come in order."""
    try:
        folder = entry.is_dir()
    except OSError:
        folder = False
    return os.fsencode(entry.name) + b"/" * folder


def _reason_to_skip(entry: os.DirEntry[str], state: os.stat_result, real_root: Path, folder: _Folder) -> str | None:
    if not is_utf8(entry.name):
        return "its name is not UTF-8"
    if entry.is_symlink() and not Path(os.path.realpath(entry.path)).is_relative_to(real_root):
        return "a link that leaves the root"
    if stat.S_ISDIR(state.st_mode):
        return "a link to a folder above it" if _identity(state) in folder.identities else None
    return None if stat.S_ISREG(state.st_mode) else "not a regular file"


def _explained(error: OSError) -> str:
    return "a dangling link" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino

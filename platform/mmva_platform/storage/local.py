"""A folder of this machine (or of a shared POSIX file system) as storage."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from mmva.files import TEMPORARY, sync_folder, temporary_file, write_atomically
from mmva_platform.storage import base
from mmva_platform.storage.base import Entry, OnSkip, is_utf8

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_CHUNK_BYTES: Final = 2**20
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # errors of file systems without hard links


class LocalStorage(base.Storage):
    """Files under a local folder, which is created with its first file."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow the user's own links
        self.uri = str(self.root)

    def read(self, path: str, most: int | None = None) -> bytes:
        """All bytes of a regular file; reads at most `most` + 1 of them, even if the file's size is wrong."""
        with self._at(path) as target:
            size = _regular_size(target)
            if most is not None:
                base.refuse_above(most, size, str(target))
            with target.open("rb", buffering=0) as file:
                return file.readall() if most is None else _read_bounded(file, size, most, str(target))

    def open(self, path: str) -> BinaryIO:
        """The file itself."""
        with self._at(path) as target:
            _regular_size(target)
            return target.open("rb")

    def write(self, path: str, data: bytes) -> None:
        """Temporary file, fsync, rename."""
        with self._at(path) as target:
            write_atomically(target, data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Temporary file, fsync, hard link: only one caller can create the link."""
        with self._at(path) as target:
            if target.exists():
                return False
            with temporary_file(target, data) as temporary:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno in _NO_LINKS:
                        raise base.StorageUnsupported(f"{target}: this file system has no hard links") from error
                    raise
                sync_folder(target.parent)
        return True

    def delete(self, path: str) -> None:
        """Unlink; the folder stays."""
        with self._at(path) as target:
            target.unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Whether the path is a file."""
        return (self.root / base.checked(path)).is_file()

    def list(self, prefix: str = "") -> Iterator[base.Entry]:
        """Every file by path. Raises StorageError for what `walk` would leave out."""
        return self.walk(prefix, self._refuse)

    def walk(self, prefix: str = "", on_skip: base.OnSkip | None = None) -> Iterator[base.Entry]:
        """Every regular file by path; links to places below the root are followed."""
        start = self.root / base.checked_prefix(prefix).rpartition("/")[0]
        with _typed_errors(start):
            yield from walk_folder(self.root, prefix, on_skip or base.log_skip)

    def filesystem(self) -> tuple[FileSystem, str]:
        """The local file system of pyarrow, and the root."""
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), self.uri

    def size(self, path: str) -> int:
        """Size in bytes."""
        with self._at(path) as target:
            return target.stat().st_size

    def local_path(self, path: str) -> Path:
        """The file's path."""
        return self.root / base.checked(path)

    def _refuse(self, path: str, reason: str) -> None:
        raise base.StorageError(f"{self.uri_of(path)}: cannot be listed ({reason})")

    @contextmanager
    def _at(self, path: str) -> Iterator[Path]:
        target = self.root / base.checked(path)
        with _typed_errors(target):
            yield target


def _regular_size(path: Path) -> int:
    """Size in bytes. Raises StorageError for a pipe, socket or device, because opening one may block forever."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):  # open raises a better error for a folder
        raise base.StorageError(f"{path}: not a regular file")
    return state.st_size


def _read_bounded(file: FileIO, size: int, most: int, place: str) -> bytes:
    """The rest of a file. `size` is only a hint: files in /proc have none, and others grow."""
    parts, held, wanted = [], 0, size + 1
    while part := file.read(min(wanted, most + 1 - held)):
        parts.append(part)
        held, wanted = held + len(part), _CHUNK_BYTES
        base.refuse_above(most, held, place)
    return b"".join(parts)


@contextmanager
def _typed_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except base.StorageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise base.StorageNotFound(f"{place}: not found") from error
    except PermissionError as error:
        raise base.StorageDenied(f"{place}: permission denied") from error
    except OSError as error:
        raise base.StorageError(f"{place}: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder that is being read: its path below the root, and device and inode of it and of its parents."""

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
    """Sort key: a folder as "name/", so that full paths are in order."""
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

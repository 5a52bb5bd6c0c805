"""A folder of this machine (or of a shared POSIX file system) as storage."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmva_platform.storage.base import (
    Entry,
    Storage,
    StorageDenied,
    StorageError,
    StorageNotFound,
    StorageUnsupported,
    checked,
    checked_prefix,
    refuse_above,
)

_TEMPORARY = ".mmva-tmp-"  # files in the making: never listed, never read
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # how file systems without hard links answer


class LocalStorage(Storage):
    """Files under a local folder, which comes into being with its first file."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links the user made on purpose
        self.uri = str(self.root)

    def read(self, path: str, most: int | None = None) -> bytes:
        """All bytes of a file."""
        target = self._at(path)
        with _typed_errors(target), target.open("rb") as file:
            if most is not None:
                refuse_above(most, os.fstat(file.fileno()).st_size, str(target))
            return file.read()

    def write(self, path: str, data: bytes) -> None:
        """Temporary file, fsync, rename."""
        target = self._at(path)
        with _typed_errors(target), _temporary(target, data) as temporary:
            temporary.replace(target)
            _sync_folder(target.parent)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Temporary file, fsync, hard link: the link is what only one caller can make."""
        target = self._at(path)
        with _typed_errors(target):
            if target.exists():
                return False
            with _temporary(target, data) as temporary:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    return False
                except OSError as error:
                    if error.errno in _NO_LINKS:
                        raise StorageUnsupported(f"{target}: this file system has no hard links") from error
                    raise
                _sync_folder(target.parent)
        return True

    def delete(self, path: str) -> None:
        """Unlink; the folder stays."""
        target = self._at(path)
        with _typed_errors(target):
            target.unlink(missing_ok=True)

    def exists(self, path: str) -> bool:
        """Whether the path is a file."""
        return self._at(path).is_file()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Files under the folder part of the prefix, filtered and sorted; links to folders are not followed."""
        start = self.root / checked_prefix(prefix).rpartition("/")[0]
        if not start.is_dir():
            return
        found = []
        with _typed_errors(start):
            for folder, _, names in os.walk(start, onerror=_raise):
                for name in names:
                    file = Path(folder, name)
                    path = file.relative_to(self.root).as_posix()
                    if path.startswith(prefix) and not name.startswith(_TEMPORARY) and file.is_file():
                        state = file.stat()
                        found.append(Entry(path, state.st_size, str(state.st_mtime_ns)))
        yield from sorted(found)

    def size(self, path: str) -> int:
        """Size in bytes."""
        target = self._at(path)
        with _typed_errors(target):
            return target.stat().st_size

    def local_path(self, path: str) -> Path:
        """The file's path."""
        return self._at(path)

    def _at(self, path: str) -> Path:
        return self.root / checked(path)


@contextmanager
def _temporary(target: Path, data: bytes) -> Iterator[Path]:
    """A synced file with the data beside the target, gone at the end unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _typed_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageNotFound(f"{place}: not found") from error
    except PermissionError as error:
        raise StorageDenied(f"{place}: permission denied") from error
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror or error}") from error


def _raise(error: OSError) -> None:
    raise error

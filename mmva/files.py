"""Files and folders that are written completely or not at all, and the digest that names and checks files."""

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".mmva-tmp-"  # start of the names of files that are not complete yet


def sha256_hex(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Create or replace a file, and create its folder. Readers see the old or the new bytes, even after a power cut."""
    with temporary_file(path, data) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


def make_folder_once(folder: Path, fill: Callable[[Path], None]) -> None:
    """Create a folder unless it exists. One process on this machine fills it; the others wait.

    `fill` gets an empty folder, which is then renamed. If the process dies before that, the next call starts again.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = folder.with_name(f"{TEMPORARY}{folder.name}")
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it when the process ends
        if folder.is_dir():
            return
        shutil.rmtree(making, ignore_errors=True)  # left by a process that died
        making.mkdir()
        try:
            fill(making)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)


@contextmanager
def temporary_file(path: Path, data: bytes) -> Iterator[Path]:
    """A synced file with the data next to `path`, whose folder is created; removed at the end unless it was moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that new names in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

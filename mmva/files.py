"""Files that appear as a whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".mmva-tmp-"  # start of the names of files that are not complete yet


def write_atomically(path: Path, data: bytes) -> None:
    """Create or replace a file and its folder: readers see the old bytes or the new ones, also after a power cut.

    Raises:
        OSError: If it cannot be written; then the old file stays as it was.
    """
    with temporary_file(path, data) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


@contextmanager
def temporary_file(path: Path, data: bytes) -> Iterator[Path]:
    """A synced file with the data in the folder of `path`, which is created; removed at the end unless it was moved."""
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
    """Make new names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

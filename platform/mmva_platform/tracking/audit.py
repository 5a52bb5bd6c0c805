"""The append-only log of who moved which alias, when and why: one JSON object a line, on disk before it counts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmva.errors import CheckFailed

FILE_NAME = "registry-audit.jsonl"
LOCK_NAME = "registry-audit.lock"


def append(home: Path, record: Mapping[str, Any]) -> Path:
    """Append one record and wait until it is on disk.

    One write on a descriptor opened for appending, so that records of processes running at once never interleave.
    """
    home.mkdir(parents=True, exist_ok=True)
    path = home / FILE_NAME
    line = (json.dumps(record, sort_keys=True, allow_nan=False) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if written != len(line):
        raise OSError(f"{path}: only {written} of {len(line)} bytes of an audit record were written")
    return path


def read(home: Path) -> list[dict[str, Any]]:
    """All records, oldest first; none if nothing was ever promoted.

    Raises:
        CheckFailed: If a line is not a JSON object, naming it.
    """
    path = home / FILE_NAME
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise CheckFailed(f"{path}: line {number} is not a JSON object; the audit log was damaged") from None
    return records


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """One process (and one thread) at a time; the system lets go when its holder dies."""
    home.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

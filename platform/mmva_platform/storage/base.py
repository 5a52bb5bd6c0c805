"""What every storage back end offers, and the errors by which a caller can tell what to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmva.errors import OperationFailed, UsageError


class StorageError(OSError, OperationFailed):
    """A storage operation failed; the message names the URI."""


class StorageNotFound(StorageError, FileNotFoundError):  # noqa: N818 - read as a state of the place, like its siblings
    """There is no such object, folder or bucket."""


class StorageDenied(StorageError, PermissionError):  # noqa: N818
    """The place exists or may exist, and these credentials may not do that."""


class StorageUnavailable(StorageError):  # noqa: N818
    """Still failing after all retries; trying again later may help."""


class StorageUnsupported(StorageError):  # noqa: N818
    """This kind of store does not offer the operation; no retry helps."""


class StorageTooLargeError(StorageError):
    """More bytes than the caller would take; none of them were kept."""


class StoragePathError(StorageError, UsageError):
    """A path that would leave its storage's root, or that no storage can hold."""


class Entry(NamedTuple):
    """One listed file: path relative to the storage's root, size in bytes, and what changes when its content does."""

    path: str
    size: int
    etag: str | None = None  # S3's ETag, a local file's time of modification in ns


class Storage(ABC):
    """Files under one root, by relative paths with forward slashes. Picklable; connects on first use.

    Attributes:
        uri: The root: an absolute local path or s3://bucket/prefix, without a trailing slash.
    """

    uri: str

    @abstractmethod
    def read(self, path: str, most: int | None = None) -> bytes:
        """All bytes of a file. StorageNotFound when it is missing, StorageTooLargeError above `most` bytes."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file; a reader sees the old bytes or the new ones, never a part."""

    @abstractmethod
    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create a file unless it exists; of any number of racing callers exactly one gets True."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file; nothing happens when it is missing. Runs never delete: only the probe's own objects go."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether a file (not a folder) is there."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Files whose path starts with `prefix`, recursively, sorted by path; empty for a missing folder."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Size in bytes. StorageNotFound when the file is missing."""

    @abstractmethod
    def local_path(self, path: str) -> Path | None:
        """The file's place on this machine, existing or not; None for remote storage."""

    @property
    def described(self) -> str:
        """The root for a message, with the server if the URI does not name it."""
        return self.uri

    def join(self, path: str) -> str:
        """Full URI of a path inside this storage."""
        return f"{self.uri.rstrip('/')}/{checked(path)}"


def checked(path: str) -> str:
    """The path itself, if it stays inside a root and every back end can hold it; StoragePathError otherwise."""
    if path.startswith("/") or any(part in {"", ".", ".."} for part in path.split("/")):
        raise StoragePathError(f"{path!r}: must be a relative path without empty parts, '.' or '..'")
    if "\0" in path or not _is_utf8(path):
        raise StoragePathError(f"{path!r}: holds characters that no storage accepts")
    return path


def checked_prefix(prefix: str) -> str:
    """As `checked`, for a listing's prefix: empty, or ending in a slash or in part of a name."""
    if prefix.strip("/"):
        checked(prefix.removesuffix("/"))
    elif prefix:
        raise StoragePathError(f"{prefix!r}: a prefix is relative to the root; leave it empty for everything")
    return prefix


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_above(most: int, size: int, place: str) -> None:
    """StorageTooLargeError for a file of more bytes than `most`."""
    if size > most:
        raise StorageTooLargeError(f"{place}: {size} bytes, the limit is {most}")

"""The interface of all storage back ends, and the errors they raise."""

from __future__ import annotations

import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, TypeVar

from mmva.errors import OperationFailed, UsageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem  # takes .1 s to import

logger = logging.getLogger(__name__)
OnSkip = Callable[[str, str], None]  # called with the path that was left out, and the reason
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 15.0
ResultT = TypeVar("ResultT")


class StorageError(OSError, OperationFailed):
    """A storage operation failed; the message names the URI.

    `environment` is True if the cause is the credentials, the bucket, the key service or the endpoint, so that every
    other object fails in the same way.
    """

    environment: bool = False


class StorageNotFound(StorageError, FileNotFoundError):  # noqa: N818 - a state of the storage, like its siblings
    """There is no such object, folder or bucket."""


class StorageDenied(StorageError, PermissionError):  # noqa: N818
    """These credentials do not allow the operation."""


class StorageUnavailable(StorageError):  # noqa: N818
    """Storage still fails after all retries; trying again later may help."""


class StorageUnsupported(StorageError):  # noqa: N818
    """This kind of store does not support the operation; no retry helps."""


class StorageTooLargeError(StorageError):
    """The file has more bytes than the caller accepts."""


class StoragePathError(StorageError, UsageError):
    """The path leaves its storage's root, or no storage can hold it."""


class Entry(NamedTuple):
    """One listed file: path relative to the storage's root, size in bytes, and a tag that changes with its content."""

    path: str
    size: int
    etag: str | None = None  # S3's ETag, or a local file's time of modification in ns


class Storage(ABC):
    """Files under one root, by relative paths with forward slashes. Picklable; connects on first use.

    Our own files have plain paths (see `checked`). On S3, keys of other programs may be any text, such as "a//b" or
    "../x"; `walk` yields them, and `read`, `open`, `size`, `exists` and `uri_of` accept them unchanged.
    """

    uri: str  # the root: an absolute local path or s3://bucket/prefix, without a trailing slash

    @abstractmethod
    def read(self, path: str, most: int | None = None) -> bytes:
        """All bytes of a file. Raises StorageNotFound if it is missing, StorageTooLargeError above `most` bytes."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A seekable, buffered, read-only file. On S3 it uses range requests, and fails if the object is replaced."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file; a reader sees the old bytes or the new ones, never a part."""

    @abstractmethod
    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create a file unless it exists; of any number of racing callers exactly one gets True."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if it is missing."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether the path is a file (not a folder)."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """As `walk`, for our own files: one request after the other. Raises StorageError for what `walk` would skip."""

    @abstractmethod
    def walk(self, prefix: str = "", on_skip: OnSkip | None = None) -> Iterator[Entry]:
        """Every file whose path starts with `prefix`, for folders of any size; empty for a missing folder.

        The order is the same in every call. S3 is listed by many requests at once, in the server's order (by path on
        AWS). Memory is bounded: it holds one local folder, or about a hundred pages of S3, at a time.

        `on_skip` is called with the path and the reason for each local file or folder that is left out: not readable,
        not a regular file, a dangling link, a link that leaves the root or leads to a folder above it, a name that is
        not UTF-8. By default a warning is logged. Raises StorageError if the folder of `prefix` cannot be listed.
        """

    @abstractmethod
    def filesystem(self) -> tuple[FileSystem, str]:
        """The same place for pyarrow.dataset and ray.data: a file system, and the path of this root in it.

        Credentials are resolved in this call and not refreshed later.
        """

    def object_store_options(self) -> dict[str, str]:
        """The same endpoint, region and credentials for libraries on Rust's object_store, such as deltalake, polars.

        Credentials are resolved in this call and not refreshed later.
        """
        return {}

    @abstractmethod
    def size(self, path: str) -> int:
        """Size in bytes. Raises StorageNotFound if the file is missing."""

    @abstractmethod
    def local_path(self, path: str) -> Path | None:
        """The file's path on this machine, whether or not it exists; None for remote storage."""

    @property
    def described(self) -> str:
        """The root for a message, with the S3 server if it is not AWS."""
        return self.uri

    def join(self, path: str) -> str:
        """Full URI of one of our own files."""
        return self.uri_of(checked(path))

    def uri_of(self, path: str) -> str:
        """Full URI of a path as `walk` gave it; nothing is normalized."""
        return f"{self.uri.rstrip('/')}/{path}"


def retry_while_unavailable(
    call: Callable[[], ResultT],
    timeout_s: float,
    what: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> ResultT:
    """Repeat a call while it raises StorageUnavailable, with growing, jittered waits.

    `call` must be safe to repeat. `timeout_s` limits the outage, from its first error; then the last error is raised.
    `what` names the caller in the log.
    """
    since: float | None = None
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return call()
        except StorageUnavailable as error:
            now = clock()
            since = now if since is None else since
            if now - since >= timeout_s:
                raise
            logger.warning("%s: storage is unavailable (%s); trying again", what, error)
        sleep(random.uniform(wait_s / 2, wait_s))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def log_skip(path: str, reason: str) -> None:
    """Log a warning; the default of `on_skip`."""
    logger.warning("%s: left out (%s)", path, reason)


def checked(path: str) -> str:
    """The path itself. Raises StoragePathError if it leaves the root or if some back end cannot hold it."""
    if path.startswith("/") or any(part in {"", ".", ".."} for part in path.split("/")):
        raise StoragePathError(f"{path!r}: must be a relative path without empty parts, '.' or '..'")
    return checked_text(path)


def checked_text(path: str) -> str:
    """The path itself. Raises StoragePathError if it is empty or if no back end can hold its characters."""
    if not path:
        raise StoragePathError("an empty path names no file")
    if "\0" in path or not is_utf8(path):
        raise StoragePathError(f"{path!r}: has characters that no storage accepts")
    return path


def checked_prefix(prefix: str) -> str:
    """As `checked`, for a listing's prefix, which may be empty or end in a slash or in part of a name."""
    if prefix.strip("/"):
        checked(prefix.removesuffix("/"))
    elif prefix:
        raise StoragePathError(f"{prefix!r}: a prefix is relative to the root; leave it empty for everything")
    return prefix


def is_utf8(text: str) -> bool:
    """Whether a text has a UTF-8 form, that is, no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_above(most: int, size: int, place: str) -> None:
    """Raise StorageTooLargeError if a file has more bytes than `most`."""
    if size > most:
        raise StorageTooLargeError(f"{place}: {size} bytes, the limit is {most}")

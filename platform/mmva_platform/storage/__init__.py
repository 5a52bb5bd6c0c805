"""Local folders and S3 behind one interface.

`open_storage` accepts "data/set", "file:///data/set" or "s3://bucket/set" and returns the same kind of object for all:
paths relative to a root, writes that are atomic, and put-if-absent with exactly one winner.
"""

from pathlib import Path
from urllib.parse import unquote

from mmva.errors import UsageError
from mmva_platform.settings import StorageSettings
from mmva_platform.storage.base import (
    Entry,
    Storage,
    StorageDenied,
    StorageError,
    StorageNotFound,
    StoragePathError,
    StorageTooLargeError,
    StorageUnavailable,
    StorageUnsupported,
)
from mmva_platform.storage.local import LocalStorage
from mmva_platform.storage.probe import probe_put_if_absent

__all__ = [
    "Entry", "Storage", "StorageDenied", "StorageError", "StorageNotFound", "StoragePathError", "StorageTooLargeError",
    "StorageUnavailable", "StorageUnsupported", "open_storage", "place_of", "probe_put_if_absent", "read_uri",
    "split_uri",
]  # fmt: skip


def open_storage(uri: str | Path, settings: StorageSettings | None = None) -> Storage:
    """Storage rooted at a local path (`~` is expanded), file:// or s3://bucket[/prefix]; it connects on first use.

    Raises UsageError for another scheme, a file:// URI with a host, or s3:// without a bucket.
    """
    text = str(uri)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStorage(Path(text).expanduser())
    if scheme == "file":
        if not rest.startswith("/"):
            raise UsageError(f"{text}: write a local file as file:///absolute/path")
        return LocalStorage(Path(unquote(rest)))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise UsageError(f"{text}: write it as s3://bucket/prefix")
        from mmva_platform.storage.s3 import S3Storage  # boto3 takes .3 s to import

        return S3Storage(bucket, prefix.strip("/"), settings or StorageSettings())
    raise UsageError(f"{text}: unknown scheme {scheme!r}; use a local path, file:// or s3://")


def split_uri(uri: str | Path) -> tuple[str, str]:
    """Folder and name of a file's URI: "s3://b/a/x.csv" -> ("s3://b/a", "x.csv"), "x.csv" -> (".", "x.csv").

    Raises UsageError if the URI names no file.
    """
    text = str(uri)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    folder, separator, name = text.rpartition("/")
    if not name or folder == "s3:/":
        raise UsageError(f"{uri}: names no file")
    return (folder or "/") if separator else ".", name


def read_uri(uri: str | Path, settings: StorageSettings | None = None) -> bytes:
    """All bytes of the file at a URI. Raises StorageNotFound, StorageDenied or StorageUnavailable."""
    folder, name = place_of(uri)
    return open_storage(folder, settings).read(name)


def place_of(uri: str | Path) -> tuple[str, str]:
    """A storage and the path in it for a file's URI; on S3 the bucket and the key, which may be any text.

    Raises UsageError if the URI names no file.
    """
    text = str(uri)
    if text.startswith("s3://"):
        bucket, _, key = text.removeprefix("s3://").partition("/")
        if not key:
            raise UsageError(f"{uri}: names no file")
        return f"s3://{bucket}", key
    return split_uri(uri)

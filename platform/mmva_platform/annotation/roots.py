"""Where media may be read from: what a catalog names outside these folders and prefixes is quarantined, not opened."""

from __future__ import annotations

import os.path
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from mmva.errors import MediaError, UsageError
from mmva_platform.annotation.catalog_tables import TABLE_SUFFIXES
from mmva_platform.storage import open_storage, split_uri

_DECODINGS = 3  # percent-encoding is taken off this often before a key is looked at


def catalog_root(uri: str) -> str:
    """The place that a catalog speaks for: the folder or prefix itself, or the one that a table stands in."""
    return normalised_root(split_uri(uri)[0] if uri.lower().endswith(TABLE_SUFFIXES) else uri)


def normalised_root(root: str) -> str:
    """A root as the plan records it: an absolute path or s3://bucket/prefix, without a trailing slash.

    Raises:
        UsageError: If it is neither a folder's path, file:// nor s3://bucket[/prefix].
    """
    if root.startswith("s3://") and _key_escapes(root.removeprefix("s3://").rstrip("/")):
        raise UsageError(f"root {root}: write it as s3://bucket/prefix, without '.', '..' or empty parts")
    return open_storage(root).uri


class AllowedRoots:
    """Decides by name alone, links resolved; asks no storage and opens nothing."""

    def __init__(self, roots: Iterable[str]) -> None:
        """Roots: folders, file:// or s3://bucket[/prefix]. Without any, nothing is allowed.

        Raises:
            UsageError: See normalised_root.
        """
        normal = [normalised_root(root) for root in roots]
        self._prefixes = [f"{root}/" for root in normal if root.startswith("s3://")]
        self._folders = [os.path.realpath(root) for root in normal if not root.startswith("s3://")]

    def check(self, uri: str) -> None:
        """Pass a media URI below a root.

        Raises:
            MediaError: "outside-roots", stage "catalog", for every other.
        """
        if not self.allow(uri):
            raise MediaError(
                "outside-roots", f"{uri}: outside the catalog's folder and the allowed roots", stage="catalog"
            )

    def allow(self, uri: str) -> bool:
        """Whether a media URI stands below a root."""
        if uri.startswith("s3://"):
            inside = any(uri.startswith(prefix) and uri != prefix for prefix in self._prefixes)
            return inside and not _key_escapes(uri.removeprefix("s3://"))
        path = local_path_of(uri)
        return path is not None and self._holds(path)

    def _holds(self, path: str) -> bool:
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):  # a NUL or a loop of links
            return False
        return any(real.is_relative_to(folder) and real != Path(folder) for folder in self._folders)


def local_path_of(uri: str) -> str | None:
    """The local path that a URI names; None for another scheme, or a relative path or a host in file://."""
    if uri.startswith("file://"):
        uri = unquote(uri.removeprefix("file://"))
    return uri if uri.startswith("/") else None


def place_of(uri: str) -> tuple[str, str]:
    """A storage to keep open for a medium and its path there: the bucket on S3, the folder elsewhere.

    Raises:
        UsageError: If the URI names no file.
    """
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return f"s3://{bucket}", key
    return split_uri(uri)


def _key_escapes(key: str) -> bool:
    """Whether a part is empty, '.' or '..', also behind percent-encoding, which some gateways take off once more."""
    for _ in range(_DECODINGS + 1):
        if any(part in {"", ".", ".."} for part in key.replace("\\", "/").split("/")) or "\0" in key:
            return True
        key = unquote(key)
    return False

"""The roots that media may be read from: an item outside them is quarantined, and its file is not opened."""

import os.path
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from mmva.errors import MediaError, UsageError
from mmva_platform.annotation.catalog.tables import TABLE_SUFFIXES
from mmva_platform.storage import open_storage, split_uri


def is_table(uri: str) -> bool:
    """Whether a URI names a table, or a folder of table files that is named like one."""
    return uri.rstrip("/").lower().endswith(TABLE_SUFFIXES)


def catalog_root(uri: str) -> str:
    """The root of a catalog's own media: the folder or prefix itself, or the folder of a table."""
    return normalised_root(split_uri(uri.rstrip("/"))[0] if is_table(uri) else uri)


def normalised_root(root: str) -> str:
    """A root as an absolute path or s3://bucket/prefix, without a trailing slash; the plan records this form.

    Raises UsageError if it is not a folder's path, file:// or s3://bucket[/prefix].
    """
    if root.startswith("s3://") and {"", ".", ".."} & set(root.removeprefix("s3://").rstrip("/").split("/")):
        raise UsageError(f"root {root}: write it as s3://bucket/prefix, without '.', '..' or empty parts")
    return open_storage(root).uri


class AllowedRoots:
    """Allows media by their URI: local links are resolved, S3 keys are compared unchanged. Opens no file."""

    def __init__(self, roots: Iterable[str]) -> None:
        """Roots are folders, file:// or s3://bucket[/prefix]; without roots nothing is allowed. See normalised_root."""
        normal = [normalised_root(root) for root in roots]
        self._prefixes = [f"{root}/" for root in normal if root.startswith("s3://")]
        self._folders = [os.path.realpath(root) for root in normal if not root.startswith("s3://")]

    def check(self, uri: str) -> None:
        """Raise MediaError ("outside-roots", stage "catalog") for a media URI that is not below a root."""
        if not self.allow(uri):
            raise MediaError(
                "outside-roots", f"{uri}: outside the catalog's folder and the allowed roots", stage="catalog"
            )

    def allow(self, uri: str) -> bool:
        """Whether a media URI is below a root.

        S3 neither decodes nor normalizes keys, so every key with the prefix is allowed. Only a part ".." is refused,
        because some gateways resolve it.
        """
        if uri.startswith("s3://"):
            inside = any(uri.startswith(prefix) and uri != prefix for prefix in self._prefixes)
            return inside and ".." not in uri.split("/")
        path = local_path_of(uri)
        if path is None:
            return False
        try:
            real = Path(os.path.realpath(path))
        except (OSError, ValueError):  # a NUL character or a loop of links
            return False
        return any(real.is_relative_to(folder) and real != Path(folder) for folder in self._folders)


def local_path_of(uri: str) -> str | None:
    """The local path of a URI; None for another scheme, a relative path, or a host in file://."""
    if uri.startswith("file://"):
        uri = unquote(uri.removeprefix("file://"))
    return uri if uri.startswith("/") else None

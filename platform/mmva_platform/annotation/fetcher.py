"""Read media by URI: only below a run's roots, with one connection per bucket."""

from collections.abc import Iterable
from functools import lru_cache

from mmva.errors import MediaError
from mmva_platform.annotation.roots import AllowedRoots
from mmva_platform.settings import StorageSettings
from mmva_platform.storage import Storage, StorageTooLargeError, StorageUnavailable, open_storage, place_of


class Fetcher:
    """Reads media by URI."""

    def __init__(self, settings: StorageSettings, roots: Iterable[str] | None = None) -> None:
        """Connect to nothing yet. A URI below none of `roots` is not opened; None allows every URI."""
        self._roots = None if roots is None else AllowedRoots(roots)
        self._open = lru_cache(maxsize=64)(lambda root: open_storage(root, settings))

    def __call__(self, uri: str, size: int | None, most: int) -> bytes:
        """Bytes of a file; `size` is its size if it is known, `most` the largest size to read.

        Raises MediaError "outside-roots" or, by the known size, "too-many-bytes" before the file is opened, and
        "too-many-bytes" by its real size; UsageError or StorageError if it cannot be read.
        """
        if self._roots is not None:
            self._roots.check(uri)
        root, path = place_of(uri)
        if size is not None and size > most:
            raise MediaError("too-many-bytes", f"{uri}: {size} bytes, the limit is {most}", stage="fetch")
        storage: Storage = self._open(root)
        try:
            return storage.read(path, most)  # the size in a table may be wrong
        except StorageTooLargeError as error:
            raise MediaError("too-many-bytes", str(error), stage="fetch") from error


def is_outage(error: Exception) -> bool:
    """Whether a fetch failed because storage gives no answer."""
    return isinstance(error, StorageUnavailable)

"""Tests whether a store supports commits: of racing put-if-absent calls, exactly one must win."""

import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mmva.errors import CheckFailed
from mmva_platform.storage.base import Storage, StorageError, StorageUnsupported

logger = logging.getLogger(__name__)

PROBE_PREFIX: Final = ".probe-"
_WRITERS: Final = 4
_USE: Final = "use AWS S3, MinIO, SeaweedFS, another store that honours it, or a local folder"
_ADVICE: Final = f"two writers of one shard would both win; {_USE}"


def probe_put_if_absent(storage: Storage) -> None:
    """Test put_if_absent with two small objects, which are removed again.

    A second put must be refused and must not change the bytes; of four puts at once, one must win. Some S3 gateways
    ignore the condition and let every writer win. Raises CheckFailed, which names stores to use instead, if the store
    fails the test, StorageError if it cannot be reached or written.
    """
    paths = [f"{PROBE_PREFIX}{uuid.uuid4().hex}" for _ in range(2)]
    try:
        _second_is_refused(storage, paths[0])
        _one_of_many_wins(storage, paths[1])
    except StorageUnsupported as error:
        raise CheckFailed(f"{error}; {_USE}") from error
    finally:
        for path in paths:
            _remove(storage, path)


def _second_is_refused(storage: Storage, path: str) -> None:
    if not storage.put_if_absent(path, b"first"):
        raise CheckFailed(f"{storage.described}: refuses a put-if-absent of an object that is not there")
    if storage.put_if_absent(path, b"second"):
        raise CheckFailed(f"{storage.described}: ignores If-None-Match: {_ADVICE}")
    if storage.read(path) != b"first":
        raise CheckFailed(f"{storage.described}: refuses a second put-if-absent but takes its bytes: {_ADVICE}")


def _one_of_many_wins(storage: Storage, path: str) -> None:
    contents = [str(number).encode() for number in range(_WRITERS)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        won = list(pool.map(lambda data: storage.put_if_absent(path, data), contents))
    if won.count(True) != 1:
        raise CheckFailed(
            f"{storage.described}: of {_WRITERS} racing put-if-absent calls {won.count(True)} won: {_ADVICE}"
        )
    if storage.read(path) != contents[won.index(True)]:
        raise CheckFailed(f"{storage.described}: holds the bytes of a put-if-absent that lost: {_ADVICE}")


def _remove(storage: Storage, path: str) -> None:
    """Without the right to delete, a probe of a few bytes is left; no reader uses it."""
    try:
        storage.delete(path)
    except StorageError as error:
        logger.info("%s: the probe stays (%s)", storage.join(path), error)

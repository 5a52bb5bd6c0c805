"""How often a shard was begun, and how long to wait for storage that is away.

A worker that dies leaves no word of it; the marks that it left before its work do. `attempts/<shard>/<uuid>.json` is
written before a shard is begun, and a shard with marks but no commit has cost workers before.
"""

from __future__ import annotations

import json
import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

from mmva_platform.storage import Storage, StorageUnavailable

logger = logging.getLogger(__name__)

ATTEMPTS: Final = "attempts/"
GIVEN_UP: Final = "given-up/"
CAREFUL_AFTER: Final = 2  # earlier attempts: one may be a node that was taken away
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0

ResultT = TypeVar("ResultT")


def begin_attempt(storage: Storage, shard: str) -> int:
    """Mark that a shard's work begins; how many attempts there were before."""
    folder = f"{ATTEMPTS}{shard}/"
    earlier = sum(1 for _ in storage.list(folder))
    who = {"host": socket.gethostname(), "pid": os.getpid(), "at": datetime.now(UTC).isoformat()}
    storage.write(f"{folder}{uuid.uuid4().hex}.json", json.dumps(who).encode())
    return earlier


def mark_given_up(storage: Storage, shard: str, number: int) -> None:
    """Mark that careful mode goes on without an item: a sign of life, long before the shard's commit."""
    storage.write(f"{GIVEN_UP}{shard}/{number}.json", json.dumps({"at": datetime.now(UTC).isoformat()}).encode())


def count_given_up(storage: Storage) -> int:
    """Items given up so far, in all shards; what a driver asks before it calls its run stalled."""
    return sum(1 for _ in storage.list(GIVEN_UP))


def patiently(
    call: Callable[[], ResultT],
    patience_s: float,
    what: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> ResultT:
    """Call until storage answers, with growing, jittered waits.

    Raises:
        StorageUnavailable: As the call last raised it, once it has failed for patience_s.
    """
    away_since: float | None = None
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return call()
        except StorageUnavailable as error:
            now = clock()
            away_since = now if away_since is None else away_since
            if now - away_since >= patience_s:
                raise
            logger.warning("%s: storage is away (%s); trying again", what, error)
        sleep(random.uniform(wait_s / 2, wait_s))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

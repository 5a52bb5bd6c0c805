"""Waiting while storage gives no answer."""

import logging
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from mmva_platform.storage.base import StorageUnavailable

logger = logging.getLogger(__name__)

_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 15.0

ResultT = TypeVar("ResultT")


def retry_while_unavailable(
    call: Callable[[], ResultT],
    timeout_s: float,
    what: str,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> ResultT:
    """Call until storage answers, with growing, jittered waits.

    `call` must be safe to repeat. `timeout_s` limits the outage, from its first error. `what` names the caller in the
    log. Raises the last StorageUnavailable after that time.
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

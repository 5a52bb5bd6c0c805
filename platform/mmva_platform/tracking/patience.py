"""A database that is busy is asked again: SQLite between processes, a server between its own transactions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

Result = TypeVar("Result")
_TRIES, _FIRST_WAIT_S = 7, 0.1
# The last two: MLflow looks whether a tag is there and then inserts it; two who finish one record meet in between.
_BUSY: Final = (
    "database is locked", "deadlock detected", "could not serialize access",
    "UNIQUE constraint failed", "duplicate key value violates unique constraint",
)  # fmt: skip


def patiently(call: Callable[[], Result]) -> Result:
    """Call again while the database is busy, waiting longer each time (some 10 s in all)."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    for tries in range(1, _TRIES + 1):
        try:
            return call()
        except (MlflowException, OperationalError) as error:
            if not any(busy in str(error) for busy in _BUSY) or tries == _TRIES:
                raise
            time.sleep(_FIRST_WAIT_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")

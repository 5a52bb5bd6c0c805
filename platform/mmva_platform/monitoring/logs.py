"""Logs as one JSON object per line, with run, shard and attempt; enabled by `logs.format: json`."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

_CONTEXT: ContextVar[Mapping[str, str | int]] = ContextVar("mmva_log_context", default=MappingProxyType({}))


@contextmanager
def bound(**values: str | int) -> Iterator[None]:
    """Add these values to every record of this thread during the block."""
    token = _CONTEXT.set({**_CONTEXT.get(), **values})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


class JsonFormatter(logging.Formatter):
    """Time (UTC), level, logger, message, bound values, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        values: dict[str, str | int] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_CONTEXT.get(),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def write_json_logs() -> None:
    """Write this process's records as JSON to standard error; in a worker, Ray writes that to the worker's log file."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler(sys.stderr))
    for handler in root.handlers:
        handler.setFormatter(JsonFormatter())
    for name in ("mmva", "mmva_platform"):
        if logging.getLogger(name).level == logging.NOTSET:
            logging.getLogger(name).setLevel(logging.INFO)

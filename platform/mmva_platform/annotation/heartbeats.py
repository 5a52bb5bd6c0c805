"""`heartbeats.json`: the shards that workers had when the driver last looked. For people only."""

import logging
import time
from collections.abc import Sequence
from typing import Final

from pydantic import Field, ValidationError

from mmva_platform.annotation.plan import version_folder
from mmva_platform.bulk import InFlight
from mmva_platform.settings import Config
from mmva_platform.storage import Storage, StorageError, StorageNotFound

logger = logging.getLogger(__name__)

_EVERY_S: Final = 30.0
_SHOWN: Final = 5


class Heartbeats(Config):
    """Content of heartbeats.json."""

    at: float = Field(description="Unix time")
    in_flight: tuple[InFlight, ...]

    def to_lines(self) -> list[str]:
        """The shards that have been under way for the longest time."""
        oldest = sorted(self.in_flight, key=lambda shard: -shard.seconds)[:_SHOWN]
        lines = [f"{len(self.in_flight)} shards under way {time.time() - self.at:.0f} s ago"]
        return lines + [
            f"  {each.shard} on node {each.node[:12]}: {each.step}, for {each.seconds:.0f} s" for each in oldest
        ]


class HeartbeatFile:
    """Writes heartbeats.json now and then; a run does not fail for it."""

    def __init__(self, storage: Storage, version: int) -> None:
        self._storage, self._path, self._written = storage, _path(version), 0.0

    def __call__(self, in_flight: Sequence[InFlight]) -> None:
        """Note the shards under way."""
        now = time.time()
        if now - self._written < _EVERY_S:
            return
        self._written = now
        try:
            self._storage.write(self._path, Heartbeats(at=now, in_flight=tuple(in_flight)).model_dump_json().encode())
        except StorageError as error:
            logger.warning("%s", error)


def read_heartbeats(storage: Storage, version: int) -> Heartbeats | None:
    """The last heartbeats; None if no driver wrote any."""
    try:
        return Heartbeats.model_validate_json(storage.read(_path(version)))
    except (StorageNotFound, ValidationError):
        return None


def _path(version: int) -> str:
    return f"{version_folder(version)}/heartbeats.json"

"""Media of a dataset on a node's disk: a node fetches a shard once for all epochs and workers.

An epoch's plan mixes all shards, so without the cache every step would fetch most of the dataset. The disk must have
room for all media of training and validation.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from mmva.errors import CheckFailed
from mmva.files import sha256_hex
from mmva_platform.datasets.schema import ShardInfo, read_parquet
from mmva_platform.storage import Storage


@dataclass(frozen=True)
class MediaCache:
    """Reads items; picklable."""

    scratch: Path | None  # folder on each node's own disk; the system's temporary folder if None
    storage: Storage  # the dataset's
    shards: tuple[ShardInfo, ...]  # by number

    @property
    def folder(self) -> Path:
        """The folder of this node's media."""
        return (self.scratch or Path(tempfile.gettempdir())) / "mmva-media"

    def read(self, shard: int, row: int) -> bytes:
        """An item's bytes. Raises CheckFailed if the shard was changed, StorageError if it cannot be read."""
        unpacked = self.folder / self.shards[shard].sha256[:32]
        if not unpacked.is_dir():
            self._unpack(self.shards[shard], unpacked)
        return (unpacked / str(row)).read_bytes()

    def _unpack(self, shard: ShardInfo, target: Path) -> None:
        """Only one process of a node unpacks a shard; the others wait. The folder appears complete or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.is_dir():
                return
            data = self.storage.read(shard.name)
            if sha256_hex(data) != shard.sha256:
                raise CheckFailed(f"{self.storage.join(shard.name)}: its bytes are not those of dataset.json")
            making = self.folder / f".{uuid.uuid4().hex}"
            making.mkdir()
            try:
                for row, media in enumerate(read_parquet(data, ["media"])["media"]):
                    if media.is_valid:
                        (making / str(row)).write_bytes(media.as_py())
                making.rename(target)
            finally:
                shutil.rmtree(making, ignore_errors=True)

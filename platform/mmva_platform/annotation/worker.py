"""The actor of an annotation run: loads the model once, then annotates and commits a shard at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmva.errors import MediaError
from mmva_platform.annotation.commit import CommitRecord, commit_path, commit_shard, read_commit
from mmva_platform.annotation.plan import ItemReader, Plan
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import Storage, open_storage, split_uri
from mmva_platform.storage.fetch import folder_fetcher


class ShardWorker:
    """What run_shards runs: an item is {"shard": name}, the result its commit record."""

    def __init__(self, bundle: Mapping[str, bytes], plan: Plan, out: str, settings: Settings, batch_size: int) -> None:
        """Load the model.

        Args:
            bundle: The bundle's files by name; shipped, because a worker's machine need not hold the folder.
            plan: The run's plan.
            out: The run's output.
            settings: Storage, and where backbones come from.
            batch_size: See Annotator.
        """
        from mmva_platform.annotation.annotator import Annotator

        self._plan = plan
        self._storage = open_storage(out, settings.storage)
        self._items = ItemReader(self._storage, plan)
        self._annotator = Annotator(_load(bundle, settings), plan, Fetcher(settings.storage), batch_size=batch_size)

    def __call__(self, item: Mapping[str, Any]) -> CommitRecord:
        """Annotate and commit a shard, unless another driver's worker already has."""
        shard: str = item["shard"]
        if self._storage.exists(commit_path(shard)):
            return read_commit(self._storage, shard)
        result = self._annotator.annotate(shard, self._items(shard))
        return commit_shard(self._storage, self._plan, shard, result)


class Fetcher:
    """Reads media by URI, with one connection a bucket."""

    def __init__(self, settings: StorageSettings) -> None:
        self._open = lru_cache(maxsize=64)(lambda root: open_storage(root, settings))

    def __call__(self, uri: str, size: int | None, most: int) -> bytes:
        """Bytes of a file.

        Args:
            uri: Where it is.
            size: Its size if it is known; asked for otherwise.
            most: Largest size to read.

        Raises:
            MediaError: "too-many-bytes", before anything is read.
            UsageError, StorageError: If it cannot be read.
        """
        root, path = _root_and_path(uri)
        storage: Storage = self._open(root)
        found = storage.size(path) if size is None else size
        if found > most:
            raise MediaError("too-many-bytes", f"{uri}: {found} bytes, the limit is {most}", stage="fetch")
        return storage.read(path)


def pack_bundle(directory: Path) -> dict[str, bytes]:
    """A bundle's files, to ship to workers."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def _load(bundle: Mapping[str, bytes], settings: Settings) -> Any:
    from mmva.bundle import load_bundle

    with tempfile.TemporaryDirectory(prefix="mmva-bundle-") as folder:
        for name, data in bundle.items():
            (Path(folder) / name).write_bytes(data)
        return load_bundle(
            folder,
            fetch=folder_fetcher(settings),
            mirror=settings.backbone_mirror,
            trusted_repos=settings.trust_remote_code,
        )


def _root_and_path(uri: str) -> tuple[str, str]:
    """A storage to keep open and a path in it: the bucket on S3, the folder elsewhere."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return f"s3://{bucket}", key
    return split_uri(uri)

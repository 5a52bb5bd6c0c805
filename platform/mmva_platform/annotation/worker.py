"""The actor of an annotation run: loads the model once, then annotates and commits a shard at a time."""

from __future__ import annotations

import faulthandler
import logging
import stat
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from mmva.errors import MediaError
from mmva_platform.annotation.attempts import CAREFUL_AFTER, begin_attempt, mark_given_up, patiently
from mmva_platform.annotation.careful import annotate_carefully
from mmva_platform.annotation.commit import CommitRecord, ShardResult, commit_path, commit_shard, read_commit
from mmva_platform.annotation.engines import load_model
from mmva_platform.annotation.plan import ItemReader, Plan
from mmva_platform.annotation.roots import AllowedRoots, local_path_of, place_of
from mmva_platform.monitoring.logs import bound, write_json_logs
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import Storage, open_storage

if TYPE_CHECKING:
    from mmva.predictor import Predictor
    from mmva_platform.annotation.annotator import Annotator
    from mmva_platform.annotation.reuse import Reuser

logger = logging.getLogger(__name__)


class ShardWorker:
    """What run_shards runs: an item is {"shard": name}, the result its commit record."""

    def __init__(self, bundle: Mapping[str, bytes], plan: Plan, out: str, settings: Settings, batch_size: int) -> None:
        """Connect; the model is loaded when the first shard needs it.

        Args:
            bundle: The bundle's files by name; shipped, because a worker's machine need not hold the folder.
            plan: The run's plan.
            out: The run's output.
            settings: Storage, and where backbones come from.
            batch_size: See Annotator.
        """
        self._bundle, self._plan, self._settings, self._batch_size = bundle, plan, settings, batch_size
        self._storage = open_storage(out, settings.storage)
        self._items = ItemReader(self._storage, plan)
        if settings.logs.format == "json":
            write_json_logs()

    def __call__(self, item: Mapping[str, Any]) -> CommitRecord:
        """Annotate and commit a shard, unless another driver's worker already has.

        Raises:
            StorageUnavailable: If storage has been away for settings.storage.patience_s.
        """
        shard: str = item["shard"]
        with bound(run=self._plan.run_id, shard=shard):
            return self._committed(shard)

    def _committed(self, shard: str) -> CommitRecord:
        patience_s, what = self._settings.storage.patience_s, f"annotate: shard {shard}"
        if patiently(lambda: self._storage.exists(commit_path(shard)), patience_s, what):
            return patiently(lambda: read_commit(self._storage, shard), patience_s, what)
        earlier = patiently(lambda: begin_attempt(self._storage, shard), patience_s, what)
        with bound(attempt=earlier + 1):
            result = patiently(lambda: self._annotated(shard, earlier), patience_s, what)
            record = patiently(lambda: commit_shard(self._storage, self._plan, shard, result), patience_s, what)
            logger.info("committed: %d annotated, %d quarantined", record.ok, record.quarantined)
            return record

    def _annotated(self, shard: str, earlier: int) -> ShardResult:
        items = self._items(shard)
        if items["base_file"][0].is_valid:
            return self._reuser(shard, items)
        if earlier >= CAREFUL_AFTER:
            logger.warning("shard %s: %d attempts without a commit, now item by item", shard, earlier)
            return annotate_carefully(
                shard,
                items,
                plan=self._plan,
                bundle=self._bundle,
                out=self._storage.uri,
                settings=self._settings,
                earlier=earlier,
                on_given_up=lambda number: mark_given_up(self._storage, shard, number),
            )
        with Watch(self._settings.annotation.item_timeout_s) as watch:
            self._watch = watch
            return self._annotator.annotate(shard, items)

    def _on_progress(self, stage: str) -> None:
        self._watch.step(stage)

    @cached_property
    def _model(self) -> Predictor:
        return load_model(self._bundle, self._plan, self._storage, self._settings)

    @cached_property
    def _annotator(self) -> Annotator:
        from mmva_platform.annotation.annotator import Annotator

        fetch = Fetcher(self._settings.storage, self._plan.roots)
        return Annotator(
            self._model,
            self._plan,
            fetch,
            batch_size=self._batch_size,
            on_progress=self._on_progress,
        )

    @cached_property
    def _reuser(self) -> Reuser:
        from mmva_platform.annotation.reuse import Reuser

        return Reuser(lambda: self._model, self._plan, self._storage, self._settings)


class Watch:
    """Ends the process if a step of an item takes too long: a decoder that hangs in native code listens to nothing.

    The worker is then started again, and a shard that this happens to twice is run item by item. Fetching is not
    watched, storage has limits of its own; nor is the loading of an encoder, which may come from far.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._begun, self._armed = limit_s, 0.0, False

    def __enter__(self) -> Self:
        return self

    def step(self, stage: str) -> None:
        """A step begins. Arming costs a thread, so steps in quick succession share one."""
        if stage in {"fetch", "load"}:
            self._stop()
        elif not self._armed or monotonic() - self._begun > min(1.0, self._limit_s / 10):
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=sys.__stderr__ or 2)
            self._begun, self._armed = monotonic(), True

    def __exit__(self, *_exception: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._armed:
            faulthandler.cancel_dump_traceback_later()
            self._armed = False


class Fetcher:
    """Reads media by URI, with one connection a bucket."""

    def __init__(self, settings: StorageSettings, roots: Iterable[str] | None = None) -> None:
        """Connect to nothing yet.

        Args:
            settings: How to reach storage.
            roots: A plan's roots; what is not below one of them is not opened. None allows every place.
        """
        self._roots = None if roots is None else AllowedRoots(roots)
        self._open = lru_cache(maxsize=64)(lambda root: open_storage(root, settings))

    def __call__(self, uri: str, size: int | None, most: int) -> bytes:
        """Bytes of a file.

        Args:
            uri: Where it is.
            size: Its size if it is known.
            most: Largest size to read.

        Raises:
            MediaError: "outside-roots", or "too-many-bytes" by its known size, before anything is opened.
            UsageError, StorageError: If it cannot be read; StorageTooLargeError by its real size.
        """
        if self._roots is not None:
            self._roots.check(uri)
        local = local_path_of(uri)
        if local is not None and stat.S_ISFIFO(_mode(local)):  # to open a pipe would wait for ever
            raise MediaError("unreadable", f"{uri}: a pipe, not a file", stage="fetch")
        root, path = place_of(uri)
        if size is not None and size > most:
            raise MediaError("too-many-bytes", f"{uri}: {size} bytes, the limit is {most}", stage="fetch")
        storage: Storage = self._open(root)
        return storage.read(path, most)  # a table may say anything about sizes


def _mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):  # what is wrong shows when it is read
        return 0


def pack_bundle(directory: Path) -> dict[str, bytes]:
    """A bundle's files, to ship to workers."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}

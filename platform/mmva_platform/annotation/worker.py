"""The actor of an annotation run: loads the model once, then annotates and commits a shard at a time."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mmva.errors import MediaError
from mmva.inference.engines import load_predictor
from mmva.inference.isolation import Isolated, report_step
from mmva.inference.time_limit import TimeLimit
from mmva_platform.annotation.attempts import CAREFUL_AFTER, begin_attempt, mark_given_up, patiently
from mmva_platform.annotation.commit import CommitRecord, ShardResult, commit_path, commit_shard, read_commit
from mmva_platform.annotation.plan import ItemReader, Plan
from mmva_platform.annotation.roots import AllowedRoots, local_path_of, place_of
from mmva_platform.cluster import own_cpus
from mmva_platform.datasets.embedder import EncoderLoader
from mmva_platform.monitoring.logs import bound, write_json_logs
from mmva_platform.settings import Settings, StorageSettings
from mmva_platform.storage import Storage, StorageTooLargeError, StorageUnavailable, open_storage

if TYPE_CHECKING:
    from mmva.inference.pipeline import Pipeline
    from mmva.predictor import Predictor
    from mmva_platform.annotation.reuse import Reuser

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 300.0  # to start a process and load an encoder, on a machine that may be busy


class ShardWorker:
    """What run_shards runs: an item is {"shard": name}, the result its commit record."""

    def __init__(self, bundle: Mapping[str, bytes], plan: Plan, out: str, settings: Settings, batch_size: int) -> None:
        """Connect; the model is loaded when the first shard needs it.

        Args:
            bundle: The bundle's files by name; shipped, because a worker's machine need not have the folder.
            plan: The run's plan.
            out: The run's output.
            settings: Storage, and where backbones come from.
            batch_size: See Pipeline.
        """
        self._plan, self._settings = plan, settings
        self._limit = TimeLimit(settings.annotation.item_timeout_s)
        self._for_child = Annotator(bundle, plan, out, settings, batch_size)
        self._annotator = Annotator(bundle, plan, out, settings, batch_size, self._limit.step)
        self._storage = open_storage(out, settings.storage)
        self._items = ItemReader(self._storage, plan)
        if settings.logs.format == "json":
            write_json_logs()

    def __call__(self, item: Mapping[str, Any]) -> CommitRecord:
        """Annotate and commit a shard, unless another driver's worker already has.

        Raises:
            EnvironmentFault: If this machine or its access to storage is broken.
            StorageUnavailable: If storage has been unavailable for settings.storage.patience_s.
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
            items = patiently(lambda: self._items(shard), patience_s, what)
            if items["base_file"][0].is_valid:
                result = patiently(lambda: self._reuser(shard, items), patience_s, what)
            else:
                result = self._annotated(shard, items, earlier)
            record = patiently(lambda: commit_shard(self._storage, self._plan, shard, result), patience_s, what)
            logger.info("committed: %d annotated, %d quarantined", record.ok, record.quarantined)
            return record

    def _annotated(self, shard: str, items: pa.Table, earlier: int) -> ShardResult:
        if earlier >= CAREFUL_AFTER:
            logger.warning("shard %s: %d attempts without a commit, now item by item", shard, earlier)
            return annotate_isolated(self._for_child, shard, items, partial(mark_given_up, self._storage, shard))
        with self._limit:
            return self._annotator(shard, items)

    @cached_property
    def _reuser(self) -> Reuser:
        from mmva_platform.annotation.reuse import Reuser

        return Reuser(lambda: self._annotator.model, self._plan, self._storage, self._settings)


@dataclass
class Annotator:
    """A model with the pipeline before it, loaded on first use; picklable until then.

    Attributes:
        bundle, plan, out, settings, batch_size: See ShardWorker.
        on_progress: Called when a step begins; see Pipeline.
    """

    bundle: Mapping[str, bytes]
    plan: Plan
    out: str
    settings: Settings
    batch_size: int = 16
    on_progress: Callable[[str], None] = report_step

    def __call__(self, shard: str, items: pa.Table, *, items_at_fault: bool = False) -> ShardResult:
        """Rows of a shard's items; see annotate_items."""
        from mmva_platform.annotation.results import annotate_items

        return annotate_items(self.pipeline, self.model, self.plan, shard, items, items_at_fault=items_at_fault)

    @cached_property
    def model(self) -> Predictor:
        """Towers, and encoders by the plan's engines."""
        storage = open_storage(self.out, self.settings.storage)
        return load_predictor(self.bundle, self.plan.engines, storage, EncoderLoader.of(self.settings))

    @cached_property
    def pipeline(self) -> Pipeline:
        """From an item's bytes to its embedding."""
        from mmva.inference.pipeline import Pipeline

        return Pipeline(
            self.model.dims,
            self.model.encoder,
            self.plan.preprocessing,
            Fetcher(self.settings.storage, self.plan.roots),
            batch_size=self.batch_size,
            is_outage=is_outage,
            patience_s=self.settings.storage.patience_s,
            decode_threads=own_cpus() if self.plan.on_gpus else 0,
            on_progress=self.on_progress,
        )


def annotate_isolated(
    annotator: Annotator, shard: str, items: pa.Table, on_given_up: Callable[[int], None] = lambda _number: None
) -> ShardResult:
    """Annotate a shard item by item in a process that may die: for items that killed or blocked workers before.

    Args:
        annotator: Loaded in the child only.
        shard: Its name.
        items: Its items.
        on_given_up: Called at once with the number of an item that cost its process.

    Raises:
        OperationFailed: If the child cannot load the model, or storage does not answer.
    """
    from mmva.inference.items import error_table, items_of
    from mmva.inference.tables import ROW_SCHEMA, WINDOW_SCHEMA, Predicted
    from mmva_platform.annotation.results import stamped

    results = []
    timeout_s = annotator.settings.annotation.item_timeout_s
    with Isolated(partial(_single_items, annotator, shard), timeout_s, LOAD_TIMEOUT_S) as isolated:
        for number in range(items.num_rows):
            row = items.slice(number, 1)
            try:
                results.append(isolated(row))
            except MediaError as error:
                (item,) = items_of(row)
                item.error = error
                given_up = Predicted(ROW_SCHEMA.empty_table(), WINDOW_SCHEMA.empty_table(), error_table([item]))
                tables = stamped(given_up, annotator.plan, shard)
                results.append(ShardResult(tables.ok, tables.quarantined, work={"quarantined": 1}))
                on_given_up(number)
    return _joined(results)


def _single_items(annotator: Annotator, shard: str) -> Callable[[pa.Table], ShardResult]:
    """Made in the child: annotates a table of one item."""
    report_step("load")
    _ = annotator.pipeline
    return lambda row: annotator(shard, row, items_at_fault=True)


def _joined(results: Iterable[ShardResult]) -> ShardResult:
    """Results of a shard's parts as one."""
    parts = list(results)
    ok, quarantined, windows = (
        pa.concat_tables([getattr(part, name) for part in parts]).combine_chunks()
        for name in ("ok", "quarantined", "windows")
    )
    work: dict[str, int] = {}
    seconds: dict[str, float] = {}
    for part in parts:
        for name, count in part.work.items():
            work[name] = work.get(name, 0) + count
        for name, spent_s in part.seconds.items():
            seconds[name] = seconds.get(name, 0.0) + spent_s
    return ShardResult(ok, quarantined, windows, work, seconds)


def is_outage(error: Exception) -> bool:
    """Whether a fetch failed because storage gives no answer."""
    return isinstance(error, StorageUnavailable)


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
            MediaError: "outside-roots" or, by its known size, "too-many-bytes" before anything is opened; then
                "too-many-bytes" by its real size.
            UsageError, StorageError: If it cannot be read.
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
        try:
            return storage.read(path, most)  # a table may say anything about sizes
        except StorageTooLargeError as error:
            raise MediaError("too-many-bytes", str(error), stage="fetch") from error


def _mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):  # reading it raises the right error
        return 0

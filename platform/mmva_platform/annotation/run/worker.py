"""The workers of an annotation run: one annotates and commits a shard; with GPUs, another one decodes it first."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, TypeVar

import pyarrow as pa

from mmva.engines.choice import sample_rate_of, unpacked
from mmva.inference.fetching import Fetching
from mmva.inference.stages import DecodeStage
from mmva_platform.annotation.media import Fetcher, is_outage
from mmva_platform.annotation.plan.plan import ItemReader, Plan
from mmva_platform.annotation.run.annotator import Annotator, annotate_isolated
from mmva_platform.annotation.run.stored import StoredRows
from mmva_platform.annotation.table.commit import CommitRecord, ShardResult, commit_path, commit_shard, read_commit
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.bulk import ISOLATE_AFTER, Attempt
from mmva_platform.monitoring.logs import bound, write_json_logs
from mmva_platform.settings import Settings, limits_of
from mmva_platform.storage import open_storage
from mmva_platform.storage.base import retry_while_unavailable

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class _Run:
    def __init__(self, plan: Plan, out: str, settings: Settings) -> None:
        self.plan, self.settings, self._attempt = plan, settings, Attempt()
        self.storage = open_storage(out, settings.storage)
        self._read_items = ItemReader(self.storage, plan)
        if settings.logs.format == "json":
            write_json_logs()

    @contextmanager
    def trying(self, shard: str, attempt: Attempt) -> Iterator[None]:
        self._attempt = attempt
        with bound(run=self.plan.run_id, shard=shard, attempt=attempt.number):
            attempt.step("fetch")
            yield

    def on_progress(self, step: str) -> None:
        self._attempt.step(step)

    def waiting(self, call: Callable[[], ResultT], shard: str) -> ResultT:
        return retry_while_unavailable(call, self.settings.storage.patience_s, f"annotate: shard {shard}")

    def items(self, shard: str) -> pa.Table:
        return self.waiting(lambda: self._read_items(shard), shard)

    def is_committed(self, shard: str) -> bool:
        """Whether a worker, perhaps of another driver, has committed the shard."""
        return self.waiting(lambda: self.storage.exists(commit_path(self.plan.version, shard)), shard)


class ShardWorker:
    """Annotates and commits a shard; its result is the commit record."""

    def __init__(self, bundle: Mapping[str, bytes], plan: Plan, out: str, settings: Settings, batch_size: int) -> None:
        """Load nothing yet; the first shard that needs the model loads it.

        `bundle` holds the bundle's files by name, because a worker's machine may not have its folder; `out` is a URI.
        """
        self._run = _Run(plan, out, settings)
        self._annotator = Annotator(bundle, plan, out, settings, batch_size, self._run.on_progress)
        self._for_child = Annotator(bundle, plan, out, settings, batch_size)

    def __call__(self, shard: dict[str, Any], attempt: Attempt) -> CommitRecord:
        """Annotate and commit a shard, unless it is already committed.

        `shard` holds "shard", its name, and with GPUs "before", the table of ShardDecoder or None. Raises
        EnvironmentFault if this machine or its access to storage is broken, StorageUnavailable if storage is
        unavailable for longer than settings.storage.patience_s.
        """
        name: str = shard["shard"]
        with self._run.trying(name, attempt):
            if self._run.is_committed(name):
                return self._run.waiting(lambda: read_commit(self._run.storage, self._run.plan.version, name), name)
            result = self._annotated(name, shard.get("before"), attempt)
            attempt.step("fetch")  # storage has its own time limits
            number = attempt.number + attempt.deaths
            record = self._run.waiting(
                lambda: commit_shard(self._run.storage, self._run.plan, name, result, attempt=number), name
            )
            logger.info("committed: %d annotated, %d quarantined", record.ok, record.quarantined)
            return record

    def _annotated(self, name: str, decoded: pa.Table | None, attempt: Attempt) -> ShardResult:
        items = self._run.items(name)
        if items["base_file"][0].is_valid:
            return self._run.waiting(lambda: self._stored_rows(name, items), name)
        if attempt.deaths >= ISOLATE_AFTER:
            logger.warning("shard %s: %d workers died; its items run in a child process", name, attempt.deaths)
            # The child process has its own time limit for each item.
            return annotate_isolated(self._for_child, name, items, lambda number: attempt.step("fetch", number + 1))
        return self._annotator(name, items, decoded=decoded, items_at_fault=attempt.items_at_fault)

    @cached_property
    def _stored_rows(self) -> StoredRows:
        before = open_annotation(self._run.storage, version=self._run.plan.version - 1)
        return StoredRows(lambda: self._annotator.model, self._run.plan, before)


class ShardDecoder:
    """The stage before ShardWorker if GPUs run the model: fetches and decodes a shard on any CPU of the cluster."""

    def __init__(self, bundle: Mapping[str, bytes], plan: Plan, out: str, settings: Settings) -> None:
        self._run, self._bundle = _Run(plan, out, settings), bundle

    def __call__(self, shard: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
        """Return the shard with "before": its decoded items, or None if there are none. Raises as ShardWorker."""
        name: str = shard["shard"]
        with self._run.trying(name, attempt):
            decoded = None
            if attempt.deaths < ISOLATE_AFTER and not self._run.is_committed(name):
                items = self._run.items(name)
                if not items["base_file"][0].is_valid:
                    decoded = self._stage(items, items_at_fault=attempt.items_at_fault)
            return shard | {"before": decoded}

    @cached_property
    def _stage(self) -> DecodeStage:
        info, storage = unpacked(self._bundle)[0], self._run.settings.storage
        return DecodeStage(
            info.dims,
            sample_rate_of(info),
            self._run.plan.preprocessing,
            Fetcher(storage, self._run.plan.roots),
            limits=limits_of(self._run.settings),
            fetching=partial(
                Fetching, is_outage=is_outage, patience_s=storage.patience_s, on_progress=self._run.on_progress
            ),
        )

"""A run's inference pipeline and model: from a shard's items to the tables of its commit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import pyarrow as pa

from mmva.errors import MediaError
from mmva.inference.engines import load_predictor
from mmva.inference.isolation import Isolated, report_step
from mmva.inference.items import error_table, items_of
from mmva.inference.pipeline import Pipeline
from mmva.inference.tables import ROW_SCHEMA, WINDOW_SCHEMA, Predicted
from mmva.predictor import Predictor
from mmva_platform.annotation.commit import ShardResult, summed
from mmva_platform.annotation.fetcher import Fetcher, is_outage
from mmva_platform.annotation.plan import INTERNAL, Plan
from mmva_platform.annotation.results import annotate_items, stamped
from mmva_platform.cluster import own_cpus
from mmva_platform.datasets.embedder import EncoderLoader
from mmva_platform.settings import Settings, limits_of
from mmva_platform.storage import open_storage

LOAD_TIMEOUT_S = 300.0  # to start a process and load an encoder, on a machine that may be busy


@dataclass
class Annotator:
    """The model and its pipeline, loaded on first use; picklable until then."""

    bundle: Mapping[str, bytes]  # files by name
    plan: Plan
    out: str  # URI of the annotation; exported networks are stored in it
    settings: Settings
    batch_size: int = 16  # see Pipeline
    on_progress: Callable[[str], None] = report_step  # called when a step begins

    def __call__(
        self, shard: str, items: pa.Table, *, decoded: pa.Table | None = None, items_at_fault: bool = False
    ) -> ShardResult:
        """Rows of a shard's items; see annotate_items."""
        return annotate_items(
            self.pipeline, self.model, self.plan, shard, items, decoded=decoded, items_at_fault=items_at_fault
        )

    @cached_property
    def model(self) -> Predictor:
        """Towers, and encoders by the plan's engines."""
        storage = open_storage(f"{self.out}/{INTERNAL}", self.settings.storage)
        return load_predictor(self.bundle, self.plan.engines, storage, EncoderLoader.of(self.settings))

    @cached_property
    def pipeline(self) -> Pipeline:
        """From an item's bytes to its embedding."""
        return Pipeline(
            self.model.dims,
            self.model.encoder,
            self.plan.preprocessing,
            Fetcher(self.settings.storage, self.plan.roots),
            batch_size=self.batch_size,
            limits=limits_of(self.settings),
            is_outage=is_outage,
            patience_s=self.settings.storage.patience_s,
            decode_threads=own_cpus() if self.plan.on_gpus else 0,
            on_progress=self.on_progress,
        )


def annotate_isolated(
    annotator: Annotator, shard: str, items: pa.Table, on_item: Callable[[int], None] = lambda _number: None
) -> ShardResult:
    """Annotate a shard item by item in a child process, because its items killed or blocked workers before.

    `on_item` is called with the number of each finished item. Raises OperationFailed if the child cannot load the model
    or storage does not answer.
    """
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
                tables = stamped(given_up, annotator.plan, shard, row)
                results.append(ShardResult(tables.ok, tables.quarantined, work={"quarantined": 1}))
            on_item(number)
    return _joined(results)


def _single_items(annotator: Annotator, shard: str) -> Callable[[pa.Table], ShardResult]:
    """Runs in the child: returns what annotates a table of one item."""
    report_step("load")
    _ = annotator.pipeline
    return lambda row: annotator(shard, row, items_at_fault=True)


def _joined(parts: Sequence[ShardResult]) -> ShardResult:
    ok, quarantined, embeddings = (
        pa.concat_tables([getattr(part, name) for part in parts]).combine_chunks()
        for name in ("ok", "quarantined", "embeddings")
    )
    work, seconds = summed(part.work for part in parts), summed(part.seconds for part in parts)
    return ShardResult(ok, quarantined, embeddings, work, seconds)

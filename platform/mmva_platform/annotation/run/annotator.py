"""A run's model and inference pipeline: makes the tables of a shard's commit from its items."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmva.engines.choice import load_predictor
from mmva.errors import MediaError
from mmva.inference.heads import predict
from mmva.inference.isolation import Isolated, report_step
from mmva.inference.items import error_table, items_of
from mmva.inference.pipeline import Pipeline
from mmva.inference.tables import ROW_SCHEMA, WINDOW_SCHEMA, Predicted, constant, offsets, table_of
from mmva.models.predictor import Predictor
from mmva_platform.annotation import schema
from mmva_platform.annotation.media import Fetcher, is_outage
from mmva_platform.annotation.plan.plan import INTERNAL, Plan
from mmva_platform.annotation.table.commit import ShardResult, summed
from mmva_platform.cluster import own_cpus
from mmva_platform.datasets.embedding.worker import EncoderLoader
from mmva_platform.settings import Settings, limits_of
from mmva_platform.storage import open_storage

LOAD_TIMEOUT_S = 300.0  # to start a process and load an encoder, on a machine that may be busy


@dataclass
class Annotator:
    """The model and its pipeline, loaded on first use; picklable until then."""

    bundle: Mapping[str, bytes]  # files by name
    plan: Plan
    out: str  # URI of the annotation, which also holds exported networks
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
        """The towers, with encoders for the plan's engines."""
        storage = open_storage(f"{self.out}/{INTERNAL}", self.settings.storage)
        return load_predictor(self.bundle, self.plan.engines, storage, EncoderLoader.of(self.settings))

    @cached_property
    def pipeline(self) -> Pipeline:
        """Makes embeddings from the bytes of items."""
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


def annotate_items(
    pipeline: Pipeline,
    model: Predictor,
    plan: Plan,
    shard: str,
    items: pa.Table,
    *,
    decoded: pa.Table | None = None,
    items_at_fault: bool = False,
) -> ShardResult:
    """Annotate a shard's items (ITEM_SCHEMA) from their bytes, or as `decoded` by a stage before, in their order.

    Raises EnvironmentFault, OperationFailed and StorageUnavailable as Pipeline.embed.
    """
    if decoded is None:
        embedded = pipeline.embed(items, items_at_fault=items_at_fault)
    else:
        embedded = pipeline.embed_decoded(decoded, items_at_fault=items_at_fault)
    begun = time.monotonic()
    predicted = predict(model, embedded)
    same = pc.sum(pc.is_in(predicted.rows["id"], value_set=embedded.same_bytes)).as_py() or 0
    work = {"media": predicted.rows.num_rows - same, "same bytes": same, "quarantined": predicted.errors.num_rows}
    result = stamped(predicted, plan, shard, items)
    return replace(result, work=work, seconds={**embedded.seconds, "heads": time.monotonic() - begun})


def stamped(predicted: Predicted, plan: Plan, shard: str, items: pa.Table) -> ShardResult:
    """Add the columns of the run and of the items (ITEM_SCHEMA) to tables of inference; drop windows unless kept."""
    rows, errors = predicted.rows, predicted.errors
    columns = _columns(rows) | _of_items(items, rows["id"]) | stamps(plan, shard, rows.num_rows)
    columns |= {column.name: pa.nulls(rows.num_rows, column.type) for column in schema.REFERENCE_SCHEMA}
    run = {"run_id": plan.run_id, "shard": shard}.items()
    named = {name: constant(value, pa.string(), errors.num_rows) for name, value in run}
    embeddings = {
        "id": rows["id"],
        "embedding": rows["embedding"],
        "windows": nested_windows(predicted.windows if plan.keep_windows else WINDOW_SCHEMA.empty_table(), rows["id"]),
    }
    return ShardResult(
        table_of(columns, schema.ANNOTATION_SCHEMA),
        table_of(_columns(errors) | _of_items(items, errors["id"]) | named, schema.QUARANTINE_SCHEMA),
        table_of(embeddings, schema.EMBEDDING_FILE_SCHEMA),
    )


def stamps(plan: Plan, shard: str, count: int) -> dict[str, pa.Array]:
    """The columns of STAMP_SCHEMA for `count` rows."""
    model = plan.model
    values = (model.name, model.version, model.digest, plan.run_id, shard, plan.created_at)
    return {
        field.name: constant(value, field.type, count) for field, value in zip(schema.STAMP_SCHEMA, values, strict=True)
    }


def nested_windows(windows: pa.Table, ids: pa.ChunkedArray) -> pa.Array:
    """Windows (WINDOW_SCHEMA, sorted by item) as a list for each of N ids, in float16; null for an id without one."""
    kind = schema.EMBEDDING_FILE_SCHEMA.field("windows").type
    item_W = np.asarray(pc.index_in(windows["id"], value_set=ids.combine_chunks()))
    order_W = np.argsort(item_W, kind="stable")
    count_N = np.bincount(item_W, minlength=len(ids)) if len(item_W) else np.zeros(len(ids), np.int64)
    taken = windows.take(pa.array(order_W)).combine_chunks()
    columns = [_single(taken["track"]), _single(taken["start_s"]), _float16(_single(taken["embedding"]))]
    structs = pa.StructArray.from_arrays(columns, fields=list(kind.value_type))
    return pa.ListArray.from_arrays(offsets(count_N), structs, kind, mask=pa.array(count_N == 0))


def flat_windows(embeddings: pa.Table) -> pa.Table:
    """Inverse of nested_windows over rows of EMBEDDING_FILE_SCHEMA: WINDOW_SCHEMA."""
    nested = _single(embeddings["windows"])
    parents = pc.list_parent_indices(nested)
    inner = nested.flatten()
    columns = {name: pc.struct_field(inner, name) for name in ("track", "start_s", "embedding")}
    return table_of({"id": embeddings["id"].take(parents), **columns}, WINDOW_SCHEMA)


def _of_items(items: pa.Table, ids: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    at = pc.index_in(ids.cast(pa.large_string()), value_set=items["id"].combine_chunks())
    return {name: items[name].take(at) for name in ("caption", "item_digest", "attempts")}


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _single(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _float16(embeddings: pa.ListArray) -> pa.ListArray:
    values = pa.array(np.asarray(embeddings.flatten()).astype(np.float16))
    return pa.ListArray.from_arrays(offsets(np.asarray(embeddings.value_lengths())), values)


def annotate_isolated(
    annotator: Annotator, shard: str, items: pa.Table, on_item: Callable[[int], None] = lambda _number: None
) -> ShardResult:
    """Annotate a shard item by item in a child process, because one of its items has killed or blocked workers.

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
    """Runs in the child process: returns a function that annotates a table of one item."""
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

"""The rows of inference as the tables of a shard's commit: with the run's name, its model and its time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmva.inference.heads import predict
from mmva.inference.tables import Predicted, constant, offsets, table_of
from mmva_platform.annotation.commit import ShardResult
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.schema import (
    ANNOTATION_SCHEMA,
    QUARANTINE_SCHEMA,
    STAMP_SCHEMA,
    WINDOW_EMBEDDING_SCHEMA,
)

if TYPE_CHECKING:
    from mmva.inference.pipeline import Pipeline
    from mmva.predictor import Predictor


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
    """Annotate a shard's items (ITEM_SCHEMA) from their bytes, or from a decode stage; rows are in the items' order.

    Raises:
        EnvironmentFault, OperationFailed, StorageUnavailable: See Pipeline.embed.
    """
    if decoded is None:
        embedded = pipeline.embed(items, items_at_fault=items_at_fault)
    else:
        embedded = pipeline.embed_decoded(decoded, items_at_fault=items_at_fault)
    begun = time.monotonic()
    predicted = predict(model, embedded)
    same = pc.is_in(predicted.rows["id"], value_set=embedded.same_bytes)
    same_bytes = pc.sum(same).as_py() or 0
    work = {
        "media": predicted.rows.num_rows - same_bytes,
        "same bytes": same_bytes,
        "quarantined": predicted.errors.num_rows,
    }
    result = stamped(predicted, plan, shard)
    seconds = {**embedded.seconds, "heads": time.monotonic() - begun}
    return ShardResult(result.ok, result.quarantined, result.windows, work, seconds)


def stamped(predicted: Predicted, plan: Plan, shard: str) -> ShardResult:
    """Tables of inference with the columns of the run; without windows if the plan does not keep them."""
    rows, errors, windows = predicted.rows, predicted.errors, predicted.windows
    run = {"run_id": plan.run_id, "shard": shard, "attempts": plan.generation}
    named = {name: constant(value, QUARANTINE_SCHEMA.field(name).type, errors.num_rows) for name, value in run.items()}
    ok = table_of(_columns(rows) | stamps(plan, shard, rows.num_rows), ANNOTATION_SCHEMA)
    kept = WINDOW_EMBEDDING_SCHEMA.empty_table()
    if plan.keep_windows and windows.num_rows:
        kept = table_of(_columns(windows) | {"embedding": _float16(windows["embedding"])}, WINDOW_EMBEDDING_SCHEMA)
    return ShardResult(ok, table_of(_columns(errors) | named, QUARANTINE_SCHEMA), kept)


def stamps(plan: Plan, shard: str, count: int) -> dict[str, pa.Array]:
    """The columns of STAMP_SCHEMA for `count` rows."""
    model = plan.model
    values = (model.name, model.version, model.digest, plan.run_id, shard, plan.created_at)
    return {field.name: constant(value, field.type, count) for field, value in zip(STAMP_SCHEMA, values, strict=True)}


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _float16(embeddings: pa.ChunkedArray) -> pa.ListArray:
    whole = embeddings.combine_chunks()
    values = pa.array(np.asarray(whole.flatten()).astype(np.float16))
    return pa.ListArray.from_arrays(offsets(np.asarray(whole.value_lengths())), values)

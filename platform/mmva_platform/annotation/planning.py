"""The second pass of planning: from a spooled catalog to shards, the files of the plan, and plan.json."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmva.errors import UsageError
from mmva.inference.config import EngineInfo, Preprocessing
from mmva_platform.annotation.plan import PLAN_FILE, BaseInfo, CatalogInfo, ModelInfo, Plan, PlanPart, read_plan
from mmva_platform.annotation.schema import ANNOTATION_VERSION, ITEM_SCHEMA, sha256_hex
from mmva_platform.annotation.shards import (
    MOST_SHARDS,
    Limits,
    cut,
    equals_together,
    first_seen,
    limits_for,
    limits_for_stored,
)
from mmva_platform.annotation.spool import Group, Spool
from mmva_platform.storage import Storage

_SHARDS_A_PART: Final = 64
_PART_BYTES: Final = 64 * 2**20  # a part is closed early at this size: it is in memory until it is written
_DICTIONARIES: Final = ["modality", "base_file"]


def write_plan(
    storage: Storage,
    spool: Spool,
    model: ModelInfo,
    preprocessing: Preprocessing,
    *,
    engines: Mapping[str, EngineInfo] | None = None,
    shard_items: int | None = None,
    base: BaseInfo | None = None,
    reusable: Collection[str] = (),
    roots: Sequence[str] = (),
    command: Sequence[str] = (),
    keep_windows: bool = True,
    generation: int = 1,
) -> Plan:
    """Cut the items into shards and make this plan the run's, or adopt the one that another driver put first.

    Args:
        storage: The run's output.
        spool: The catalog.
        model: What annotates.
        preprocessing: How.
        engines: Tower -> what computes the embeddings; their speeds decide the size of shards.
        shard_items: Most items of a shard; None for about a minute of work.
        base: The earlier annotation to build upon; its `items` are filled in.
        reusable: Modalities whose stored embeddings in the base are what this run would compute.
        roots: Where media may be read from, the catalog's own place first; see normalised_root.
        command: As typed.
        keep_windows: Whether windows' embeddings are kept.
        generation: 1, or more for a retry.

    Raises:
        UsageError: If there would be too many shards.
        CheckFailed: If another plan is there that differs in what decides the output.
    """
    engines = dict(engines or {})
    shards = shards_of(spool, engines, preprocessing.hop_s, shard_items, reusable)
    stored: Counter[str] = Counter()
    parts = tuple(_write_parts(storage, _counted(shards, stored), spool.uri))
    plan = Plan(
        annotation_version=ANNOTATION_VERSION,
        run_id=uuid.uuid4().hex,
        created_at=datetime.now(UTC),
        model=model,
        preprocessing=preprocessing,
        engines=engines,
        catalog=CatalogInfo(
            uri=spool.uri,
            items=spool.items,
            by_modality=spool.by_modality,
            skipped=spool.skipped,
            duplicates=spool.duplicates,
            duplicate_ids=spool.duplicate_ids,
        ),
        base=base and base.model_copy(update={"items": stored["items"]}),
        roots=tuple(roots),
        command=tuple(command),
        generation=generation,
        keep_windows=keep_windows,
        parts=parts,
    )
    if storage.put_if_absent(PLAN_FILE, plan.model_dump_json(indent=1).encode()):
        return plan
    settled = read_plan(storage)
    settled.check_same(plan, storage.uri)
    return settled


def shards_of(
    spool: Spool,
    engines: Mapping[str, EngineInfo],
    hop_s: float,
    shard_items: int | None = None,
    reusable: Collection[str] = (),
) -> Iterator[pa.Table]:
    """The items of each shard (ITEM_SCHEMA) in the order of the work; arguments as for write_plan.

    First what is annotated anew, the longest work first. Then what an earlier annotation holds, by its files there.
    """
    stored = [group for group in spool.groups if group.stored and group.modality in reusable]
    new = [group for group in spool.groups if group not in stored]
    units_of: defaultdict[str, float] = defaultdict(float)
    for group in new:
        units_of[group.modality] += spool.units[group]
    limits = limits_for(units_of, sum(spool.rows[group] for group in new), engines, hop_s, shard_items)
    yield from cut(_new_items(spool, new), limits)
    if stored:
        yield from _stored_shards(spool, stored)


def _new_items(spool: Spool, groups: Iterable[Group]) -> Iterator[pa.Table]:
    for group in groups:
        for chunk in spool.chunks(group):
            items = equals_together(chunk)
            if group.stored:  # held by the base, but of another backbone or engine
                items = items.set_column(
                    len(ITEM_SCHEMA) - 1, ITEM_SCHEMA.field("base_file"), pa.nulls(items.num_rows, pa.large_string())
                )
            yield items


def _stored_shards(spool: Spool, groups: Iterable[Group]) -> Iterator[pa.Table]:
    """All of these items are in memory together, as the base is that they were found in."""
    items = pa.concat_tables([chunk for group in groups for chunk in spool.chunks(group)])
    by_file = items.take(pa.array(np.argsort(first_seen(items["base_file"]), kind="stable")))
    limits: Limits = limits_for_stored(items.num_rows)
    return cut([by_file], limits)


def _counted(shards: Iterable[pa.Table], stored: Counter[str]) -> Iterator[pa.Table]:
    for shard in shards:
        stored["items"] += shard.num_rows - shard["base_file"].null_count
        yield shard


def _write_parts(storage: Storage, shards: Iterable[pa.Table], catalog: str) -> Iterator[PlanPart]:
    """Write shards into files of some row groups each, named by their digest."""
    part = _Part(0)
    for number, shard in enumerate(shards):
        if number == MOST_SHARDS:
            raise UsageError(
                f"{catalog}: more than {MOST_SHARDS} shards; choose a larger --shard-items, or leave it to the run"
            )
        part.add(shard)
        if part.is_full:
            yield part.put(storage)
            part = _Part(number + 1)
    if part.rows:
        yield part.put(storage)


class _Part:
    """A file of the plan while it is made."""

    def __init__(self, first_shard: int) -> None:
        self._first, self.rows, self._sink = first_shard, list[int](), pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._sink,
            ITEM_SCHEMA,
            compression="zstd",
            use_dictionary=_DICTIONARIES,
            write_statistics=False,
            write_page_checksum=True,
        )

    @property
    def is_full(self) -> bool:
        return len(self.rows) == _SHARDS_A_PART or self._sink.tell() > _PART_BYTES

    def add(self, shard: pa.Table) -> None:
        self._writer.write_table(shard.combine_chunks(), row_group_size=shard.num_rows)
        self.rows.append(shard.num_rows)

    def put(self, storage: Storage) -> PlanPart:
        self._writer.close()
        data = self._sink.getvalue().to_pybytes()
        digest = sha256_hex(data)
        path = f"plan/items-{self._first:06d}-{digest[:16]}.parquet"
        storage.put_if_absent(path, data)
        return PlanPart(path=path, sha256=digest, first_shard=self._first, rows=tuple(self.rows))

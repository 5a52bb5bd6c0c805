"""The second pass of planning: cuts a spooled catalog into shards, and writes the plan's parts and plan.json."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmva.errors import UsageError
from mmva.files import sha256_hex
from mmva.inference.config import EngineInfo, Preprocessing
from mmva_platform.annotation.plan.plan import (
    Base,
    CatalogInfo,
    Kind,
    ModelInfo,
    Plan,
    PlanPart,
    plan_file,
    read_plan,
    version_folder,
)
from mmva_platform.annotation.plan.shards import MOST_SHARDS, cut, equals_together, limits_for, limits_for_stored
from mmva_platform.annotation.plan.spool import Group, Spool
from mmva_platform.annotation.schema import ANNOTATION_VERSION, ITEM_SCHEMA
from mmva_platform.storage import Storage

_SHARDS_A_PART: Final = 64
_PART_BYTES: Final = 64 * 2**20  # a larger part is closed early, because it is in memory until it is written
_DICTIONARIES: Final = ["modality", "attempts", "base_file"]


def write_plan(
    storage: Storage,
    spool: Spool,
    model: ModelInfo,
    preprocessing: Preprocessing,
    *,
    engines: Mapping[str, EngineInfo] | None = None,
    shard_items: int | None = None,
    version: int = 0,
    kind: Kind = "annotate",
    base: Base | None = None,
    stored: Stored | None = None,
    catalog: CatalogInfo | None = None,
    roots: Sequence[str] = (),
    command: Sequence[str] = (),
    keep_windows: bool = True,
) -> Plan:
    """Cut the items into shards and write the version's plan, or return the plan that another driver wrote first.

    The size of shards follows from the speeds of `engines` (tower -> engine), unless `shard_items` is given. `base` and
    `stored` describe what an update takes from the version before. `catalog` is the version's catalog, by default that
    of the spool. `roots` are normalised, the catalog's own first. Raises UsageError if there would be too many shards,
    CheckFailed if the other driver's plan gives another output.
    """
    engines = dict(engines or {})
    shards = shards_of(spool, engines, preprocessing.hop_s, shard_items, stored)
    parts = tuple(write_parts(storage, version_folder(version), shards, spool.catalog.uri))
    plan = Plan(
        annotation_version=ANNOTATION_VERSION,
        run_id=uuid.uuid4().hex,
        created_at=datetime.now(UTC),
        model=model,
        preprocessing=preprocessing,
        engines=engines,
        catalog=catalog or spool.catalog,
        version=version,
        kind=kind,
        base=base,
        roots=tuple(roots),
        command=tuple(command),
        keep_windows=keep_windows,
        parts=parts,
    )
    return settled(storage, plan)


def settled(storage: Storage, plan: Plan) -> Plan:
    """Write a plan, or return the one that another driver wrote first; CheckFailed if that gives another output."""
    if storage.put_if_absent(plan_file(plan.version), plan.model_dump_json(indent=1).encode()):
        return plan
    other = read_plan(storage, plan.version)
    other.check_same(plan, storage.uri)
    return other


@dataclass(frozen=True)
class Stored:
    """What an update does with items that are unchanged since the version before."""

    kept: Collection[str]  # data files that both versions share; their items are in no shard
    reusable: Collection[str]  # modalities whose stored embeddings are valid; others are annotated again


def shards_of(
    spool: Spool,
    engines: Mapping[str, EngineInfo],
    hop_s: float,
    shard_items: int | None = None,
    stored: Stored | None = None,
) -> Iterator[pa.Table]:
    """The items of each shard (ITEM_SCHEMA) in the order of the work; arguments as for write_plan.

    First the items to annotate, the longest first. Then the items that the version before has, by its files.
    """
    taken = [group for group in spool.groups if stored and group.stored and group.modality in stored.reusable]
    new = [group for group in spool.groups if group not in taken]
    units_of: defaultdict[str, float] = defaultdict(float)
    for group in new:
        units_of[group.modality] += spool.units[group]
    limits = limits_for(units_of, sum(spool.rows[group] for group in new), engines, hop_s, shard_items)
    yield from cut(_new_items(spool, new), limits)
    if stored:
        yield from _stored_shards(spool, taken, pa.array(sorted(stored.kept), pa.large_string()))


def _new_items(spool: Spool, groups: Iterable[Group]) -> Iterator[pa.Table]:
    for group in groups:
        for chunk in spool.chunks(group):
            items = equals_together(chunk)
            if group.stored:  # in the version before, but with another backbone or engine
                for name in ("base_file", "base_row"):
                    field = ITEM_SCHEMA.field(name)
                    position = ITEM_SCHEMA.get_field_index(name)
                    items = items.set_column(position, field, pa.nulls(items.num_rows, field.type))
            yield items


def _stored_shards(spool: Spool, groups: Iterable[Group], kept: pa.Array) -> Iterator[pa.Table]:
    """Holds all of these items in memory, without the columns that the table has."""
    parts = [_located(chunk, kept) for group in groups for chunk in spool.chunks(group)]
    items = pa.concat_tables([ITEM_SCHEMA.empty_table(), *parts])
    if items.num_rows:
        by_place = [("base_file", "ascending"), ("base_row", "ascending")]
        yield from cut([items.sort_by(by_place).combine_chunks()], limits_for_stored(items.num_rows))


def _located(chunk: pa.Table, kept: pa.Array) -> pa.Table:
    """Items of the files that are not kept: ids and places."""
    items = chunk.filter(pc.invert(pc.is_in(chunk["base_file"], value_set=kept)))
    for name in ("uri", "caption", "bytes", "etag"):
        field = ITEM_SCHEMA.field(name)
        items = items.set_column(ITEM_SCHEMA.get_field_index(name), field, pa.nulls(items.num_rows, field.type))
    return items


def write_parts(storage: Storage, folder: str, shards: Iterable[pa.Table], catalog: str) -> Iterator[PlanPart]:
    """Write shards into parts of several row groups, named by their digest."""
    part = _Part(folder, 0)
    for number, shard in enumerate(shards):
        if number == MOST_SHARDS:
            raise UsageError(
                f"{catalog}: more than {MOST_SHARDS} shards; choose a larger --shard-items, or leave it out"
            )
        part.add(shard)
        if part.is_full:
            yield part.put(storage)
            part = _Part(folder, number + 1)
    if part.rows:
        yield part.put(storage)


class _Part:
    def __init__(self, folder: str, first_shard: int) -> None:
        self._folder, self._first = folder, first_shard
        self.rows, self._sink = list[int](), pa.BufferOutputStream()
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
        path = f"{self._folder}/plan/items-{self._first:06d}-{digest[:16]}.parquet"
        storage.put_if_absent(path, data)
        return PlanPart(path=path, sha256=digest, first_shard=self._first, rows=tuple(self.rows))

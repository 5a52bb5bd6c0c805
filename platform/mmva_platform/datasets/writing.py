"""Shards written on the cluster: each by the worker that inspects its files, and once more if other shards' say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from mmva.inference.prefetch import THREADS, Request, prefetched
from mmva_platform.datasets.candidates import Candidate
from mmva_platform.datasets.inspection import Inspected, inspect
from mmva_platform.datasets.schema import DATASET_SCHEMA, ShardInfo, parquet_bytes, read_parquet, sha256_of
from mmva_platform.datasets.sharding import Planned, Row
from mmva_platform.pool import run_shards
from mmva_platform.progress import progress
from mmva_platform.settings import ClusterSettings
from mmva_platform.storage import Storage


@dataclass(frozen=True)
class Written:
    """A shard as it was written: the split of each of its candidates that decode, by id. No shard without any."""

    name: str
    inspected: tuple[Inspected, ...]
    split_of: dict[str, str]
    shard: ShardInfo | None


def write_shards(planned: Sequence[Planned], media: Storage, out: Storage, cluster: ClusterSettings) -> list[Written]:
    """Write each shard with those of its candidates that decode; needs a Ray session."""
    written: dict[str, Written] = {}
    with progress("import", sum(len(shard.candidates) for shard in planned)) as advance:

        def collect(result: Written) -> None:
            written[result.name] = result
            advance(len(result.inspected))

        run_shards(
            [{"shard": shard} for shard in planned],
            ShardWriter,
            stage="import",
            on_result=collect,
            constructor_kwargs={"media": media, "out": out},
            stall_timeout_s=cluster.stall_timeout_s,
        )
    return [written[shard.name] for shard in planned]


def amend_shards(
    written: Sequence[Written], rows: Sequence[Row], out: Storage, cluster: ClusterSettings
) -> list[ShardInfo]:
    """The shards of exactly these rows: those that hold others, or another split, are written once more.

    They are written from themselves: no media file is read again. Needs a Ray session.
    """
    final = {(row.entry.candidate.modality, row.entry.candidate.id): row.split for row in rows}
    shards: dict[str, ShardInfo] = {}
    tasks = []
    for one in written:
        if one.shard is None:
            continue
        split_of = {name: final[key] for name in one.split_of if (key := (one.shard.modality, name)) in final}
        if split_of == one.split_of:
            shards[one.name] = one.shard
        elif split_of:
            tasks.append({"name": one.name, "split_of": split_of})
        else:
            out.delete(one.name)  # nothing refers to it yet

    def collect(shard: ShardInfo) -> None:
        shards[shard.name] = shard

    run_shards(
        tasks,
        ShardAmender,
        stage="import: amend shards",
        on_result=collect,
        constructor_kwargs={"out": out},
        stall_timeout_s=cluster.stall_timeout_s,
    )
    return [shards[one.name] for one in written if one.name in shards]


class ShardWriter:
    """Worker of an import: one shard an item, inspected and written whole; doing it again gives the same bytes."""

    def __init__(self, media: Storage, out: Storage) -> None:
        self._media = media
        self._out = out
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="mmva-fetch")

    def __call__(self, item: dict[str, Any]) -> Written:
        """Inspect the candidates of the Planned "shard", and write those that decode."""
        shard: Planned = item["shard"]
        inspected, split_of, values = [], {}, []
        reads = self._reads(shard.candidates)
        for candidate, split, read in zip(shard.candidates, shard.splits, reads, strict=True):
            entry, data = inspect(candidate, read)
            inspected.append(entry)
            if not entry.code:
                split_of[candidate.id] = split
                values.append({**Row(entry, split).values(), "media": data})
        table = pa.Table.from_pylist(values, schema=DATASET_SCHEMA)
        info = _write_shard(self._out, shard.name, table) if values else None
        return Written(shard.name, tuple(inspected), split_of, info)

    def _reads(self, candidates: Sequence[Candidate]) -> Iterator[Callable[[], bytes]]:
        """What gives each file: ahead of its turn over a network, where waiting is what it costs."""
        if self._media.local_path(candidates[0].path) is not None:
            yield from (partial(self._media.read, candidate.path) for candidate in candidates)
            return
        requests = [Request(candidate.path, candidate.bytes) for candidate in candidates]
        for future in prefetched(lambda request: self._media.read(request.uri), requests, self._pool):
            yield future.result


class ShardAmender:
    """Worker that writes a shard once more, from itself: what else was found leaves it only some of its rows."""

    def __init__(self, out: Storage) -> None:
        self._out = out

    def __call__(self, item: dict[str, Any]) -> ShardInfo:
        """Leave in the shard "name" the rows of "split_of", by id, with their splits."""
        split_of: dict[str, str] = item["split_of"]
        table = read_parquet(self._out.read(item["name"]))
        ids = table["id"].to_pylist()
        table = table.filter(pa.array([name in split_of for name in ids]))
        splits = pa.array([split_of[name] for name in ids if name in split_of], DATASET_SCHEMA.field("split").type)
        table = table.set_column(DATASET_SCHEMA.get_field_index("split"), DATASET_SCHEMA.field("split"), splits)
        return _write_shard(self._out, item["name"], table.combine_chunks())


def _write_shard(out: Storage, name: str, table: pa.Table) -> ShardInfo:
    data = parquet_bytes(table)
    out.write(name, data)
    modality = table["modality"][0].as_py()
    return ShardInfo(name=name, modality=modality, rows=len(table), bytes=len(data), sha256=sha256_of(data))

"""Writes shards on the cluster: first by the workers that inspect their files, then again if their rows change."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby, repeat
from typing import Any, Final, TypeVar

import pyarrow as pa

from mmva.errors import EnvironmentFault
from mmva.inference.fetching import THREADS, Request, prefetched
from mmva.inference.isolation import Isolated
from mmva.modalities import Modality
from mmva_platform import bulk
from mmva_platform.datasets.importing.candidates import Candidate, PlannedShard
from mmva_platform.datasets.importing.inspection import (
    MISSING_FILE,
    Inspected,
    MediaChecker,
    Part,
    inspect,
    inspect_sentence,
)
from mmva_platform.datasets.schema import DATASET_SCHEMA, ShardInfo, read_parquet, write_shard
from mmva_platform.progress import progress
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage
from mmva_platform.storage.base import retry_while_unavailable

ResultT = TypeVar("ResultT")
_LOAD_TIMEOUT_S: Final = 120.0  # of the decoders, in a process of their own on a busy machine


@dataclass(frozen=True)
class Written:
    """A shard as it was written."""

    name: str  # of the PlannedShard
    inspected: tuple[Inspected, ...]  # all candidates
    split_of: dict[str, str]  # split by id of the candidates that decode
    shard: ShardInfo | None  # None if no candidate decodes


def write_shards(
    planned: Sequence[PlannedShard], media: Mapping[str, Storage], out: Storage, settings: Settings
) -> list[Written]:
    """Write each shard with those of its candidates that decode; `media` has the folder of each collection's files.

    Needs a Ray session.
    """
    written: dict[str, Written] = {}
    with progress("import", sum(len(shard.candidates) for shard in planned)) as advance:

        def collect(result: Written) -> None:
            written[result.name] = result
            advance(len(result.inspected))

        bulk.run_pass(
            [{"shard": shard.name, "planned": shard} for shard in planned],
            ShardWriter,
            stage="import",
            settings=settings,
            on_result=collect,
            kwargs={"media": media, "out": out, "settings": settings},
            step_limit_s=settings.annotation.item_timeout_s,
        )
    return [written[shard.name] for shard in planned]


def amend_shards(
    written: Sequence[Written], split_of: Mapping[tuple[str, str], str], out: Storage, settings: Settings
) -> list[ShardInfo]:
    """Return the shards of exactly the rows that are left; write shards with other rows or splits again.

    This reads the shards, so no media file is read twice. A new file has another name, and the old one is kept until
    the dataset is published. `split_of` has the split of each row that is left, by modality and id. Needs a Ray
    session.
    """
    shards: dict[str, ShardInfo] = {}
    tasks = []
    for one in written:
        if one.shard is None:
            continue
        wanted = {name: split_of[key] for name in one.split_of if (key := (one.shard.modality, name)) in split_of}
        if wanted == one.split_of:
            shards[one.name] = one.shard
        elif wanted:
            tasks.append({"shard": one.name, "file": one.shard.name, "split_of": wanted})

    def collect(result: tuple[str, ShardInfo]) -> None:
        shards.update([result])

    if tasks:
        stage, kwargs = "import: amend shards", {"out": out, "settings": settings}
        bulk.run_pass(tasks, ShardAmender, stage=stage, settings=settings, on_result=collect, kwargs=kwargs)
    return [shards[one.name] for one in written if one.name in shards]


class ShardWriter:
    """Worker of an import: inspects the files of a shard and writes it. The same files give the same bytes and name."""

    def __init__(self, media: Mapping[str, Storage], out: Storage, settings: Settings) -> None:
        self._media, self._out, self._settings = media, out, settings
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="mmva-fetch")

    def __call__(self, shard: dict[str, Any], attempt: bulk.Attempt) -> Written:
        """Inspect the candidates of the PlannedShard under "planned", and write those that decode.

        Raises EnvironmentFault if none of the shard's files exists for this worker, StorageError if a file cannot be
        read for another reason or the shard cannot be written.
        """
        planned: PlannedShard = shard["planned"]
        attempt.step("fetch")
        if planned.modality == "caption":
            found: Iterable[tuple[Inspected, bytes | None]] = [
                (inspect_sentence(each), None) for each in planned.candidates
            ]
        else:
            found = self._files(planned, attempt)
        inspected, split_of, rows = [], {}, []
        for (entry, data), split in zip(found, planned.splits, strict=True):
            inspected.append(entry)
            if not entry.code:
                split_of[entry.candidate.id] = split
                rows.append({**entry.row(split), "media": data})
        if all(entry.code == MISSING_FILE for entry in inspected) and not attempt.items_at_fault:
            raise EnvironmentFault(
                f"import: none of the {len(inspected)} files of {planned.name} is at "
                f"{self._media[planned.collection].uri} on this worker, such as {inspected[0].candidate.path}; every "
                "node must see the media"
            )
        attempt.step("fetch", len(inspected))  # storage has its own time limits
        info = None
        if rows:
            table = pa.Table.from_pylist(rows, schema=DATASET_SCHEMA)
            info = self._waiting(lambda: write_shard(self._out, planned.name, table))
        return Written(planned.name, tuple(inspected), split_of, info)

    def _files(self, planned: PlannedShard, attempt: bulk.Attempt) -> Iterator[tuple[Inspected, bytes]]:
        with self._decoder(planned.modality, attempt) as check:
            reads = self._reads(planned.candidates, self._media[planned.collection])
            for done, (candidate, read) in enumerate(zip(planned.candidates, reads, strict=True)):
                attempt.step("fetch", done)
                yield inspect(candidate, read, check)

    @contextmanager
    def _decoder(self, modality: Modality, attempt: bulk.Attempt) -> Iterator[Callable[[Part], bytes | None]]:
        """Yield a function that decodes a file; in a child process if the shard has killed workers."""
        make = partial(MediaChecker, modality)
        if attempt.deaths >= bulk.ISOLATE_AFTER:
            with Isolated(make, self._settings.annotation.item_timeout_s, _LOAD_TIMEOUT_S) as isolated:
                yield isolated  # the attempt's step is "fetch", without a time limit: the child process has its own
            return
        checker = make()

        def check(part: Part) -> bytes | None:
            attempt.step("decode")
            return checker(part)

        yield check

    def _reads(self, candidates: Sequence[Candidate], media: Storage) -> Iterator[Callable[[], bytes]]:
        """For each candidate, a function that returns its file's bytes; remote files are fetched ahead.

        Consecutive clips of one song share one read.
        """
        clips_of = [list(own) for _, own in groupby(candidates, key=lambda candidate: candidate.path)]
        if media.local_path(candidates[0].path) is not None:
            reads: Iterator[Callable[[], bytes]] = (cache(partial(media.read, clips[0].path)) for clips in clips_of)
        else:
            requests = [Request(one.path, None if one.end_s else one.bytes) for one, *_ in clips_of]
            fetched = prefetched(lambda one: self._waiting(lambda: media.read(one.uri)), requests, self._pool)
            reads = (future.result for future in fetched)
        for read, clips in zip(reads, clips_of, strict=True):
            yield from repeat(read, len(clips))

    def _waiting(self, call: Callable[[], ResultT]) -> ResultT:
        """Repeat a call while storage is unavailable: an outage must not discard finished files."""
        return retry_while_unavailable(call, self._settings.storage.patience_s, "import")


class ShardAmender:
    """Worker that writes a shard again with some of its rows, named by its new digest."""

    def __init__(self, out: Storage, settings: Settings) -> None:
        self._out, self._patience_s = out, settings.storage.patience_s

    def __call__(self, shard: dict[str, Any], attempt: bulk.Attempt) -> tuple[str, ShardInfo]:
        """Keep the rows of "split_of" of the shard's "file", with these splits, by id."""
        attempt.step("fetch")
        return retry_while_unavailable(lambda: self._amended(shard), self._patience_s, "import")

    def _amended(self, shard: dict[str, Any]) -> tuple[str, ShardInfo]:
        split_of: dict[str, str] = shard["split_of"]
        table = read_parquet(self._out.read(shard["file"]))
        ids = table["id"].to_pylist()
        table = table.filter(pa.array([name in split_of for name in ids]))
        field = DATASET_SCHEMA.field("split")
        splits = pa.array([split_of[name] for name in ids if name in split_of], field.type)
        table = table.set_column(DATASET_SCHEMA.get_field_index("split"), field, splits).combine_chunks()
        return shard["shard"], write_shard(self._out, shard["shard"], table)

"""An earlier annotation to build upon: which of a catalog's items it holds unchanged, and in which file.

An item is the same if its id, URI, modality, caption, size and etag are those of the base's plan. Of a table without
sizes and etags, a file that was replaced under the same URI is not noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mmva.errors import CheckFailed, UsageError
from mmva.inference.config import EngineInfo, Preprocessing
from mmva.modalities import MEDIA_KINDS, towers_of
from mmva_platform.annotation.commit import CommitRecord
from mmva_platform.annotation.plan import BaseInfo, ItemReader, ModelInfo, Plan, read_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, generations, identity, read_file, read_manifest
from mmva_platform.annotation.schema import ANNOTATION_VERSION, CATALOG_SCHEMA
from mmva_platform.annotation.unique import digests_of
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage


@dataclass(frozen=True)
class Base:
    """A published annotation with its retries.

    Attributes:
        storage: The run.
        plan: Its plan; model, preprocessing and engines of its retries are the same.
        places: All published generations, the run first.
        digest: Identity over their manifests.
    """

    storage: Storage
    plan: Plan
    places: tuple[Storage, ...]
    digest: str

    @property
    def engines(self) -> dict[str, EngineInfo]:
        """What computed its embeddings; a run built upon it adopts them unless told otherwise."""
        return self.plan.engines

    def lookup(self) -> Lookup:
        """What finds a catalog's items in it; reads plans and quarantine, no embeddings."""
        return Lookup(*self._annotated_items())

    def reusable(self, preprocessing: Preprocessing, engines: Mapping[str, EngineInfo]) -> set[str]:
        """Modalities whose stored embeddings are what a run with these would compute.

        None with other windows or sizes; not those of another backbone or another engine.
        """
        mine = self.plan.preprocessing
        if _cut(mine) != _cut(preprocessing):
            return set()
        towers = {
            tower
            for tower, fingerprint in mine.fingerprints.items()
            if preprocessing.fingerprints.get(tower) == fingerprint
            and _engine(self.engines, tower) == _engine(engines, tower)
        }
        return {name for name in MEDIA_KINDS if set(towers_of(name)) <= towers}

    def info(self, model: ModelInfo) -> BaseInfo:
        """What a plan records of it; the number of items is not known yet."""
        return BaseInfo(
            uri=self.storage.uri,
            run_id=self.plan.run_id,
            manifest_sha256=self.digest,
            same_model=model.digest == self.plan.model.digest,
            items=0,
        )

    def _annotated_items(self) -> tuple[pa.Table, pa.Array]:
        """Planned items that were annotated, and the file of each; reads plans and quarantine, no embeddings."""
        tables, files, counts = [CATALOG_SCHEMA.empty_table()], [], []
        for place in self.places:
            prefix = place.uri.removeprefix(self.storage.uri).strip("/")
            read = ItemReader(place, read_plan(place))
            for commit in read_manifest(place).shards:
                if commit.data is None:
                    continue
                tables.append(_annotated(place, commit, read(commit.shard)).select(CATALOG_SCHEMA.names))
                files.append(f"{prefix}/{commit.data.path}" if prefix else commit.data.path)
                counts.append(tables[-1].num_rows)
        codes = pa.array(np.repeat(np.arange(len(files)), counts), pa.int64())
        return pa.concat_tables(tables).combine_chunks(), pa.array(files, pa.large_string()).take(codes)


class Lookup:
    """Finds catalog rows that an annotation holds unchanged. All its items are in memory."""

    def __init__(self, known: pa.Table, files: pa.Array) -> None:
        """Known: annotated items (CATALOG_SCHEMA), K rows; files: the file of each, relative to the base."""
        key_K = digests_of(known["id"])[:, 0]
        self._order_K = np.argsort(key_K, kind="stable")
        self._keys_K, self._known, self._files = key_K[self._order_K], known, files

    def __call__(self, batch: pa.Table) -> pa.Array:
        """For each row (CATALOG_SCHEMA) its file in the base, or null."""
        if not self._known.num_rows:
            return pa.nulls(batch.num_rows, pa.large_string())
        place_N = np.searchsorted(self._keys_K, digests_of(batch["id"])[:, 0])
        row_N = self._order_K[np.minimum(place_N, len(self._order_K) - 1)]
        found = self._known.take(pa.array(row_N))
        same_N = np.ones(batch.num_rows, dtype=bool)
        for name in CATALOG_SCHEMA.names:
            same_N &= _equal(batch[name].combine_chunks(), found[name].combine_chunks())
        return self._files.take(pa.array(row_N, mask=~same_N))


def open_base(uri: str, settings: Settings) -> Base:
    """A published annotation, to build upon.

    Raises:
        UsageError: If it is none, not published, or of another schema version.
    """
    storage = open_storage(uri, settings.storage)
    plan = read_plan(storage)
    if plan.annotation_version != ANNOTATION_VERSION:
        raise UsageError(
            f"{storage.uri}: annotation schema {plan.annotation_version}, this mmva builds upon {ANNOTATION_VERSION}; "
            "annotate without a base"
        )
    places = tuple(generations(storage, settings.storage))
    return Base(storage, plan, places, identity(places))


def find_base_beside(out: str, settings: Settings, preprocessing: Preprocessing | None = None) -> str | None:
    """The newest published annotation in the folder that `out` stands in, by its plan's time; None without one.

    Args:
        out: URI of the run to come; it is not its own base.
        settings: How to reach storage.
        preprocessing: If given, only annotations from which at least one modality can be reused count.
    """
    own = open_storage(out, settings.storage).uri
    parent, _, own_name = own.rpartition("/")
    newest: tuple[float, str] | None = None
    for name in _published_in(parent, settings):
        if name == own_name:
            continue
        try:
            plan = read_plan(open_storage(f"{parent}/{name}", settings.storage))
        except UsageError:
            continue  # of an older version, or something else altogether
        if plan.annotation_version != ANNOTATION_VERSION or not _useful(plan.preprocessing, preprocessing):
            continue
        found = (plan.created_at.timestamp(), f"{parent}/{name}")
        newest = max(newest or found, found)
    return newest[1] if newest else None


def base_files(base: Storage, digest: str, settings: Settings) -> dict[str, tuple[Storage, CommitRecord]]:
    """Where each file of annotations stands, by its path relative to the base, with its shard's record.

    A retry published after the plan was made adds files and takes none away.

    Raises:
        CheckFailed: If the base is no longer the one that was planned with.
    """
    places = generations(base, settings.storage)
    if digest not in {identity(places[:count]) for count in range(1, len(places) + 1)}:
        raise CheckFailed(
            f"{base.uri}: not the annotation that this run was planned upon; annotate to another output, "
            "with or without a base"
        )
    found = {}
    for place in places:
        prefix = place.uri.removeprefix(base.uri).strip("/")
        for commit in read_manifest(place).shards:
            if commit.data is not None:
                found[f"{prefix}/{commit.data.path}" if prefix else commit.data.path] = (place, commit)
    return found


def _annotated(place: Storage, commit: CommitRecord, planned: pa.Table) -> pa.Table:
    if commit.quarantine is None:
        return planned
    bad = read_file(place, commit.quarantine)["id"].cast(pa.large_string()).combine_chunks()
    return planned.filter(pc.invert(pc.is_in(planned["id"], value_set=bad)))


def _cut(preprocessing: Preprocessing) -> tuple[float, float, int]:
    return preprocessing.window_s, preprocessing.hop_s, preprocessing.short_side


def _useful(theirs: Preprocessing, mine: Preprocessing | None) -> bool:
    return mine is None or (
        _cut(theirs) == _cut(mine) and bool(theirs.fingerprints.items() & mine.fingerprints.items())
    )


def _engine(engines: Mapping[str, EngineInfo], tower: str) -> str:
    return engines[tower].name if tower in engines else "torch"


def _equal(left: pa.Array, right: pa.Array) -> NDArray[np.bool_]:
    """Equality row by row, in which null equals null."""
    both_null = pc.and_(pc.is_null(left), pc.is_null(right))
    return np.asarray(pc.or_(pc.fill_null(pc.equal(left, right), fill_value=False), both_null))


def _published_in(folder: str, settings: Settings) -> list[str]:
    """Names of the folders beside each other that hold a manifest."""
    storage = open_storage(folder, settings.storage)
    local = storage.local_path("any")
    if local is not None:
        root: Path = local.parent
        return sorted(path.parent.name for path in root.glob(f"*/{MANIFEST_FILE}")) if root.is_dir() else []
    paths = (entry.path.split("/") for entry in storage.list())
    return [parts[0] for parts in paths if len(parts) == 2 and parts[1] == MANIFEST_FILE]

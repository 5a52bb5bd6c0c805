"""An earlier annotation to build upon: which of a catalog's items stand in it unchanged, and in which file.

An item is the same if its id, URI, modality, caption, size and etag are those of the base's plan. A table that tells
neither sizes nor etags is believed: a file replaced under the same URI is not noticed there.
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
from mmva.modalities import towers_of
from mmva_platform.annotation.commit import CommitRecord
from mmva_platform.annotation.plan import BaseInfo, ItemReader, ModelInfo, Plan, read_plan
from mmva_platform.annotation.publish import MANIFEST_FILE, generations, identity, read_file, read_manifest
from mmva_platform.annotation.schema import ANNOTATION_VERSION, CATALOG_SCHEMA
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

    def plan_for(
        self,
        items: pa.Table,
        model: ModelInfo,
        preprocessing: Preprocessing,
        engines: Mapping[str, EngineInfo] | None = None,
    ) -> tuple[BaseInfo, pa.Array]:
        """Which items need no media.

        Args:
            items: A catalog's items (CATALOG_SCHEMA), N rows.
            model: What the new run annotates with.
            preprocessing: Its preprocessing. With other windows or sizes nothing is taken from the base, and nothing
                of a modality whose backbone is another.
            engines: Its engines; nothing is taken of a modality whose engine is another. None adopts the base's.

        Returns:
            What the plan records of the base, and for each item its file relative to the base, or null, length N.
        """
        towers = self._same_towers(preprocessing, self.engines if engines is None else engines)
        known, files = self._annotated_items()
        position_N = pc.index_in(items["id"].combine_chunks(), value_set=known["id"].combine_chunks())
        same_N = np.asarray(pc.is_valid(position_N)) & _of_towers(items["modality"], towers)
        found = known.take(pc.fill_null(position_N, 0)) if known.num_rows else known
        for name in CATALOG_SCHEMA.names if known.num_rows else ():
            same_N &= _equal(items[name].combine_chunks(), found[name].combine_chunks())
        rows = pa.array(np.where(same_N, np.asarray(pc.fill_null(position_N, 0)), 0), mask=~same_N)
        info = BaseInfo(
            uri=self.storage.uri,
            run_id=self.plan.run_id,
            manifest_sha256=self.digest,
            same_model=model.digest == self.plan.model.digest,
            items=int(same_N.sum()),
        )
        return info, files.take(rows) if known.num_rows else pa.nulls(items.num_rows, pa.string())

    def _same_towers(self, preprocessing: Preprocessing, engines: Mapping[str, EngineInfo]) -> set[str]:
        """Towers whose stored embeddings are what the new run would compute."""
        mine = self.plan.preprocessing
        if _cut(mine) != _cut(preprocessing):
            return set()
        return {
            tower
            for tower, fingerprint in mine.fingerprints.items()
            if preprocessing.fingerprints.get(tower) == fingerprint
            and _engine(self.engines, tower) == _engine(engines, tower)
        }

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
        return pa.concat_tables(tables).combine_chunks(), pa.array(files, pa.string()).take(codes)


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
    bad = read_file(place, commit.quarantine)["id"].combine_chunks()
    return planned.filter(pc.invert(pc.is_in(planned["id"], value_set=bad)))


def _cut(preprocessing: Preprocessing) -> tuple[float, float, int]:
    return preprocessing.window_s, preprocessing.hop_s, preprocessing.short_side


def _useful(theirs: Preprocessing, mine: Preprocessing | None) -> bool:
    return mine is None or (
        _cut(theirs) == _cut(mine) and bool(theirs.fingerprints.items() & mine.fingerprints.items())
    )


def _engine(engines: Mapping[str, EngineInfo], tower: str) -> str:
    return engines[tower].name if tower in engines else "torch"


def _of_towers(modalities: pa.ChunkedArray, towers: set[str]) -> NDArray[np.bool_]:
    """Which items' embeddings come from these towers alone."""
    names = pc.unique(modalities).drop_null().to_pylist()
    usable = [name for name in names if set(towers_of(name)) <= towers]
    return np.asarray(pc.is_in(modalities, value_set=pa.array(usable, pa.string())))


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

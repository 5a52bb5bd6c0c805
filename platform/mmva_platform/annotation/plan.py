"""The plan of an annotation run: fixed before any work, written once, obeyed by every resume.

`plan/catalog-<digest>.parquet` holds the items in their planned order and `plan.json` everything that decides what the
output will be. Both are put if absent, so the first driver's plan is the run's plan. A later call with another model,
preprocessing, catalog or schema version is refused with the difference; the same call finds its shards as they were.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
from pydantic import Field, ValidationError

from mmva.errors import CheckFailed, UsageError
from mmva.inference.config import EngineInfo, Preprocessing
from mmva_platform.annotation.catalog import Catalog
from mmva_platform.annotation.differences import catalog_difference
from mmva_platform.annotation.roots import catalog_root, normalised_root
from mmva_platform.annotation.schema import (
    ANNOTATION_VERSION,
    ITEM_SCHEMA,
    parquet_to_table,
    sha256_hex,
    table_to_parquet,
)
from mmva_platform.annotation.shards import as_counts, cut, ordered
from mmva_platform.settings import Config
from mmva_platform.storage import Storage, StorageNotFound

PLAN_FILE: Final = "plan.json"
_SHARDS_A_CHAPTER: Final = 64
_MOST_SHARDS: Final = 1_000_000  # six digits: names sort as numbers do; docs/scale.md says what so many cost


class ModelInfo(Config):
    """The model that a run annotates with; its digest is its identity."""

    name: str
    version: str | None
    digest: str


class BaseInfo(Config):
    """The earlier annotation that a run builds upon."""

    uri: str
    run_id: str
    manifest_sha256: str = Field(description="over all its published manifests: its identity")
    same_model: bool = Field(description="rows are carried over as they are; otherwise heads run over its embeddings")
    items: int = Field(ge=0, description="items taken from it")


class Chapter(Config):
    """A file with the items of some consecutive shards, so that a worker reads what it needs and not the catalog."""

    path: str
    sha256: str
    first_shard: int
    shards: int = Field(ge=1)


class CatalogInfo(Config):
    """The catalog as it was when the plan was made."""

    uri: str
    digest: str
    items: int = Field(ge=1)
    by_modality: dict[str, int]
    skipped: dict[str, int]
    duplicates: int
    duplicate_ids: tuple[str, ...]


class Plan(Config):
    """`plan.json`."""

    annotation_version: int
    run_id: str
    created_at: datetime
    model: ModelInfo
    preprocessing: Preprocessing
    engines: dict[str, EngineInfo] = Field(description="modality -> engine")
    catalog: CatalogInfo
    base: BaseInfo | None
    roots: tuple[str, ...] = Field(
        (), description="media are read from below these only; the catalog's own place first"
    )
    command: tuple[str, ...] = Field(description="as it was typed, for the run card")
    generation: int = Field(1, ge=1, description="1 for a run, one more for each retry of its quarantine")
    keep_windows: bool = Field(description="whether the windows' embeddings are written beside the items'")
    chapters: tuple[Chapter, ...]
    bounds: tuple[int, ...] = Field(description="shard k holds the items bounds[k] to bounds[k + 1]")

    @property
    def shards(self) -> list[str]:
        """Names of the shards, in order."""
        return [f"{number:06d}" for number in range(len(self.bounds) - 1)]

    @property
    def on_gpus(self) -> bool:
        """Whether workers need a GPU."""
        return any(engine.on_gpu for engine in self.engines.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the output; the run's id and time, names and shard sizes do not."""
        return sha256_hex(json.dumps(self.decisive(), sort_keys=True).encode())

    def decisive(self) -> dict[str, Any]:
        """What two calls must agree on to share an output, flat, for comparing and for showing."""
        flat: dict[str, Any] = {
            "annotation schema version": self.annotation_version,
            "model digest": self.model.digest,
            "catalog digest": self.catalog.digest,
            "catalog items": self.catalog.items,
            "window_s": self.preprocessing.window_s,
            "hop_s": self.preprocessing.hop_s,
            "short_side": self.preprocessing.short_side,
            "window embeddings kept": self.keep_windows,
            "roots": ", ".join(sorted(self.roots)),
            "base": self.base.manifest_sha256 if self.base else None,
        }
        for name, value in sorted(self.preprocessing.fingerprints.items()):
            flat[f"{name} preprocessing"] = value
        for name, engine in sorted(self.engines.items()):
            flat[f"{name} engine"] = engine.name
        return flat

    def differences(self, other: Plan) -> list[str]:
        """What keeps another plan from sharing this one's output, one line each."""
        there, now = self.decisive(), other.decisive()
        return [
            f"{key}: {there.get(key)} there, {now.get(key)} now"
            for key in there | now
            if there.get(key) != now.get(key)
        ]


def make_plan(
    catalog: Catalog,
    model: ModelInfo,
    preprocessing: Preprocessing,
    shard_items: int | None,
    *,
    engines: Mapping[str, EngineInfo] | None = None,
    base: BaseInfo | None = None,
    base_files: pa.Array | None = None,
    roots: Sequence[str] = (),
    command: Sequence[str] = (),
    keep_windows: bool = True,
) -> tuple[Plan, dict[str, bytes]]:
    """Order the items and cut them into shards; nothing is written.

    Args:
        catalog: What to annotate.
        model: With what.
        preprocessing: How.
        shard_items: Largest shard, in images or the same amount of other work; None chooses by the catalog's size.
        engines: What computes the embeddings, by modality.
        base: The earlier annotation to build upon.
        base_files: For each of the catalog's items its file there, or null.
        roots: Where media may be read from, besides the catalog's own place.
        command: As typed.
        keep_windows: Whether windows' embeddings are kept.

    Returns:
        The plan, and its chapters' files by path.
    """
    if shard_items is not None and shard_items < 1:
        raise UsageError(f"shard_items must be at least 1, got {shard_items}")
    files = pa.nulls(catalog.items.num_rows, pa.string()) if base_files is None else base_files
    items = ordered(catalog.items.append_column(ITEM_SCHEMA.field("base_file"), files))
    bounds = cut(items, shard_items)
    if len(bounds) - 1 > _MOST_SHARDS:
        raise UsageError(
            f"{catalog.uri}: {len(bounds) - 1} shards of at most {shard_items} items, and a run has {_MOST_SHARDS} at "
            "most: choose a larger --shard-items, or leave it to the run"
        )
    chapters, contents = _chapters(items, bounds)
    plan = Plan(
        annotation_version=ANNOTATION_VERSION,
        run_id=uuid.uuid4().hex,
        created_at=datetime.now(UTC),
        model=model,
        preprocessing=preprocessing,
        engines=dict(engines or {}),
        catalog=CatalogInfo(
            uri=catalog.uri,
            digest=catalog.digest,
            items=items.num_rows,
            by_modality=as_counts(items),
            skipped=catalog.skipped,
            duplicates=catalog.duplicates,
            duplicate_ids=catalog.duplicate_ids,
        ),
        base=base,
        roots=tuple(dict.fromkeys([catalog_root(catalog.uri), *map(normalised_root, roots)])),
        command=tuple(command),
        keep_windows=keep_windows,
        chapters=chapters,
        bounds=bounds,
    )
    return plan, contents


def _chapters(items: pa.Table, bounds: Sequence[int]) -> tuple[tuple[Chapter, ...], dict[str, bytes]]:
    chapters, contents = [], {}
    for first in range(0, len(bounds) - 1, _SHARDS_A_CHAPTER):
        last = min(first + _SHARDS_A_CHAPTER, len(bounds) - 1)
        data = table_to_parquet(items.slice(bounds[first], bounds[last] - bounds[first]).combine_chunks())
        digest = sha256_hex(data)
        path = f"plan/items-{first:06d}-{digest[:16]}.parquet"
        chapters.append(Chapter(path=path, sha256=digest, first_shard=first, shards=last - first))
        contents[path] = data
    return tuple(chapters), contents


def settle_plan(storage: Storage, plan: Plan, contents: Mapping[str, bytes]) -> Plan:
    """Make this plan the run's, or adopt the one that is already there.

    Args:
        storage: The run's output.
        plan: What this caller wants.
        contents: Its chapters' files, as make_plan gives them.

    Returns:
        The run's plan: this caller's, or that of an earlier or concurrent one that agrees with it.

    Raises:
        CheckFailed: If the output belongs to a run that differs in what decides the output; names every difference.
    """
    if not storage.exists(PLAN_FILE):
        for path, data in contents.items():
            storage.put_if_absent(path, data)
        if storage.put_if_absent(PLAN_FILE, plan.model_dump_json(indent=1).encode()):
            return plan
    settled = read_plan(storage)
    differences = settled.differences(plan)
    if plan.catalog.digest != settled.catalog.digest:
        planned = pa.concat_tables([parquet_to_table(data) for data in contents.values()])
        differences.append(catalog_difference(read_items(storage, settled), planned))
    if differences:
        raise CheckFailed(
            f"{storage.uri} holds annotations made otherwise ({'; '.join(differences)}); choose another output, "
            "or call with what it was made with"
        )
    return settled


def read_plan(storage: Storage) -> Plan:
    """The run's plan.

    Raises:
        UsageError: If there is none, or it is not readable as one.
    """
    try:
        return Plan.model_validate_json(storage.read(PLAN_FILE))
    except StorageNotFound:
        raise UsageError(f"{storage.uri}: no annotation run here ({PLAN_FILE} is missing)") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "content"
        raise UsageError(f"{storage.join(PLAN_FILE)}: not a plan of this version ({field}: {first['msg']})") from None


def read_chapter(storage: Storage, chapter: Chapter) -> pa.Table:
    """Items of a chapter (ITEM_SCHEMA).

    Raises:
        CheckFailed: If the file is not the one that was planned.
    """
    data = storage.read(chapter.path)
    if sha256_hex(data) != chapter.sha256:
        raise CheckFailed(f"{storage.join(chapter.path)}: changed since it was planned (SHA-256 differs)")
    return parquet_to_table(data)


class ItemReader:
    """Items of a plan's shards; keeps the chapter it read last, so shards are best asked for in order."""

    def __init__(self, storage: Storage, plan: Plan) -> None:
        self._storage, self._plan = storage, plan
        self._chapter: Chapter | None = None
        self._items: pa.Table | None = None

    def __call__(self, shard: str) -> pa.Table:
        """Items of a shard (ITEM_SCHEMA); raises as read_chapter."""
        number = int(shard)
        chapter = self._plan.chapters[number // self._plan.chapters[0].shards]
        if chapter != self._chapter:
            self._items, self._chapter = read_chapter(self._storage, chapter), chapter
        assert self._items is not None
        start, stop = self._plan.bounds[number], self._plan.bounds[number + 1]
        return self._items.slice(start - self._plan.bounds[chapter.first_shard], stop - start)


def read_items(storage: Storage, plan: Plan) -> pa.Table:
    """All planned items, in order; raises as read_chapter."""
    return pa.concat_tables([read_chapter(storage, chapter) for chapter in plan.chapters])

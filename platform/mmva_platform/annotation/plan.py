"""The plan of an annotation run: fixed before any work, written once, obeyed by every resume.

`plan/catalog-<digest>.parquet` holds the items in their planned order and `plan.json` everything that decides what the
output will be. Both are put if absent, so the first driver's plan is the run's plan. A later call with another model,
preprocessing, catalog or schema version is refused with the difference; the same call finds its shards as they were.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.catalog import Catalog
from mmva_platform.annotation.schema import ANNOTATION_VERSION, parquet_to_table, sha256_hex, table_to_parquet
from mmva_platform.settings import Config
from mmva_platform.storage import Storage, StorageNotFound

PLAN_FILE: Final = "plan.json"

# Estimated work in units of one image (some 30 ms on one core with the compact preset).
_COST: Final = {"image": 1.0, "caption": 0.2}
_MUSIC_COST_PER_S: Final = 2.0
_MUSIC_UNKNOWN_S: Final = 5.0
# Bytes of a second of audio, by format: CD quality where it is not compressed, usual bit rates elsewhere.
_BYTES_PER_S: Final = {"wav": 176_400, "flac": 90_000, "mp3": 24_000, "ogg": 20_000, "opus": 14_000}
_BYTES_PER_S_OTHER: Final = 20_000
_MODALITY_ORDER: Final = ("music", "image", "caption")  # the longest work first, so that no actor is left with it alone
_SHARDS_WANTED, _SMALLEST_SHARD = 16, 8.0


class ModelInfo(Config):
    """The model that a run annotates with; its digest is its identity."""

    name: str
    version: str | None
    digest: str


class Preprocessing(Config):
    """What happens to an item before the towers see it."""

    fingerprints: dict[str, str] = Field(description="modality -> fingerprint of backbone and its preprocessing")
    window_s: float = Field(gt=0, description="length of a window of audio")
    hop_s: float = Field(gt=0, description="distance of the starts of neighbouring windows")
    short_side: int = Field(gt=0, description="pixels below which no JPEG is decoded; the same as when training")


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
    catalog: CatalogInfo
    items_file: str
    items_sha256: str
    bounds: tuple[int, ...] = Field(description="shard k holds the items bounds[k] to bounds[k + 1]")

    @property
    def shards(self) -> list[str]:
        """Names of the shards, in order."""
        return [f"{number:06d}" for number in range(len(self.bounds) - 1)]

    def slice(self, items: pa.Table, shard: str) -> pa.Table:
        """The items of one shard."""
        start, stop = self.bounds[int(shard)], self.bounds[int(shard) + 1]
        return items.slice(start, stop - start)

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
        }
        return flat | {
            f"{name} preprocessing": value for name, value in sorted(self.preprocessing.fingerprints.items())
        }


def make_plan(
    catalog: Catalog, model: ModelInfo, preprocessing: Preprocessing, shard_items: int
) -> tuple[Plan, pa.Table]:
    """Order the items and cut them into shards; nothing is written.

    Args:
        catalog: What to annotate.
        model: With what.
        preprocessing: How.
        shard_items: Largest shard, in images or the same amount of other work.

    Returns:
        The plan, and the items in its order.
    """
    if shard_items < 1:
        raise UsageError(f"shard_items must be at least 1, got {shard_items}")
    items = _ordered(catalog.items)
    data = table_to_parquet(items)
    modalities = items.column("modality").to_pylist()
    counts = {name: modalities.count(name) for name in dict.fromkeys(modalities)}
    plan = Plan(
        annotation_version=ANNOTATION_VERSION,
        run_id=uuid.uuid4().hex,
        created_at=datetime.now(UTC),
        model=model,
        preprocessing=preprocessing,
        catalog=CatalogInfo(
            uri=catalog.uri,
            digest=catalog.digest,
            items=items.num_rows,
            by_modality={name or "unknown": count for name, count in counts.items()},
            skipped=catalog.skipped,
            duplicates=catalog.duplicates,
            duplicate_ids=catalog.duplicate_ids,
        ),
        items_file=f"plan/catalog-{sha256_hex(data)[:16]}.parquet",
        items_sha256=sha256_hex(data),
        bounds=shard_bounds(estimated_costs(items), shard_items),
    )
    return plan, items


def settle_plan(storage: Storage, plan: Plan, items: pa.Table) -> tuple[Plan, pa.Table]:
    """Make this plan the run's, or adopt the one that is already there.

    Returns:
        The run's plan and its items: this caller's, or those of an earlier or concurrent one that agrees with it.

    Raises:
        CheckFailed: If the output belongs to a run that differs in what decides the output; names every difference.
    """
    if not storage.exists(PLAN_FILE):
        storage.put_if_absent(plan.items_file, table_to_parquet(items))
        if storage.put_if_absent(PLAN_FILE, plan.model_dump_json(indent=1).encode()):
            return plan, items
    settled = read_plan(storage)
    mine, theirs = plan.decisive(), settled.decisive()
    differences = [
        f"{key}: {theirs.get(key)} there, {mine.get(key)} now"
        for key in theirs | mine
        if theirs.get(key) != mine.get(key)
    ]
    if differences:
        raise CheckFailed(
            f"{storage.uri} holds annotations made otherwise ({'; '.join(differences)}); choose another output, "
            "or call with what it was made with"
        )
    return settled, read_items(storage, settled)


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


def read_items(storage: Storage, plan: Plan) -> pa.Table:
    """The planned items, in order.

    Raises:
        CheckFailed: If the file is not the one that was planned.
    """
    data = storage.read(plan.items_file)
    if sha256_hex(data) != plan.items_sha256:
        raise CheckFailed(f"{storage.join(plan.items_file)}: changed since it was planned (SHA-256 differs)")
    return parquet_to_table(data)


def estimated_costs(items: pa.Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Estimated work of each item, shape [N], in units of one image."""
    return np.array([_cost(row) for row in items.select(["uri", "modality", "bytes"]).to_pylist()], dtype=np.float64)


def _cost(row: dict[str, Any]) -> float:
    if row["modality"] != "music":
        return _COST.get(row["modality"], 1.0)
    if row["bytes"] is None:
        return _MUSIC_COST_PER_S * _MUSIC_UNKNOWN_S
    extension = str(row["uri"]).rpartition(".")[2].lower()
    return max(1.0, _MUSIC_COST_PER_S * row["bytes"] / _BYTES_PER_S.get(extension, _BYTES_PER_S_OTHER))


def shard_bounds(costs: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]], shard_items: int) -> tuple[int, ...]:
    """Cut ordered items into runs of about equal work.

    A shard takes items until its work passes the target: `shard_items`, or less for a small catalog, so that there are
    shards for every actor. An item that is more than the target is a shard of its own.

    Returns:
        Ascending bounds, shape [shards + 1], from 0 to len(costs).
    """
    target = min(float(shard_items), max(_SMALLEST_SHARD, float(np.sum(costs)) / _SHARDS_WANTED))
    bounds, work = [0], 0.0
    for index, cost in enumerate(costs):
        full = work + cost > target or index - bounds[-1] >= _most_items(shard_items)
        if work and full:
            bounds.append(index)
            work = 0.0
        work += cost
    return (*bounds, len(costs))


def _most_items(shard_items: int) -> int:
    """Cheap items are many to a shard, but a shard stays a thing that one commit record can lose."""
    return 8 * shard_items


def _ordered(items: pa.Table) -> pa.Table:
    """Items by modality, the catalog's order within: a shard's items then share their batches."""
    rank = {name: position for position, name in enumerate(_MODALITY_ORDER)}
    ranks = [rank.get(name, len(rank)) for name in items.column("modality").to_pylist()]
    return items.take(pa.array(np.argsort(np.array(ranks), kind="stable"))).combine_chunks()

"""Publishing: the manifest, put last and once, by which readers know that a run is whole. They trust nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa
from pydantic import Field, ValidationError

from mmva.errors import CheckFailed, UsageError
from mmva_platform.annotation.commit import CommitRecord, FileRecord
from mmva_platform.annotation.plan import ModelInfo, Plan
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA, parquet_to_table, sha256_hex
from mmva_platform.datasets.dataset import read_as_ray
from mmva_platform.settings import Config, StorageSettings
from mmva_platform.storage import Storage, StorageNotFound, open_storage

if TYPE_CHECKING:
    import ray.data

MANIFEST_FILE: Final = "MANIFEST.json"
RETRIES: Final = "retries"


class Totals(Config):
    """What became of a catalog: items = ok + quarantined."""

    items: int
    ok: int
    quarantined: int
    by_modality: dict[str, int] = Field(description="annotated items of each modality")
    causes: dict[str, int] = Field(description="quarantined items of each cause")
    work: dict[str, int] = Field(description="items by how they came about; see ShardResult")
    seconds: dict[str, float] = Field(description="of all workers, by stage")


class Manifest(Config):
    """`MANIFEST.json`."""

    annotation_version: int
    run_id: str
    plan_fingerprint: str
    model: ModelInfo
    totals: Totals
    shards: tuple[CommitRecord, ...]


def add_up(commits: Iterable[CommitRecord]) -> Totals:
    """Totals of shards."""
    items = ok = quarantined = 0
    by_modality: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    work: Counter[str] = Counter()
    seconds: dict[str, float] = {}
    for commit in commits:
        items, ok, quarantined = items + commit.items, ok + commit.ok, quarantined + commit.quarantined
        by_modality.update(commit.by_modality)
        causes.update(commit.causes)
        work.update(commit.work)
        for stage, value in commit.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    return Totals(
        items=items,
        ok=ok,
        quarantined=quarantined,
        by_modality=dict(sorted(by_modality.items())),
        causes=dict(causes.most_common()),
        work=dict(sorted(work.items())),
        seconds=seconds,
    )


def publish(storage: Storage, plan: Plan, commits: Iterable[CommitRecord]) -> Manifest:
    """Put the manifest over a finished run; a concurrent driver's, if it came first, stands.

    Raises:
        CheckFailed: If a shard is missing or foreign, or the counts do not balance; nothing is published then.
    """
    ordered = tuple(sorted(commits, key=lambda commit: commit.shard))
    if [commit.shard for commit in ordered] != plan.shards or {commit.run_id for commit in ordered} != {plan.run_id}:
        raise CheckFailed(
            f"{storage.uri}: the committed shards are not the plan's; run `mmva annotations verify` on it"
        )
    totals = add_up(ordered)
    if not totals.ok + totals.quarantined == totals.items == plan.catalog.items:
        raise CheckFailed(
            f"{storage.uri}: {plan.catalog.items} items planned, but {totals.ok} annotated and "
            f"{totals.quarantined} quarantined"
        )
    manifest = Manifest(
        annotation_version=plan.annotation_version,
        run_id=plan.run_id,
        plan_fingerprint=plan.fingerprint,
        model=plan.model,
        totals=totals,
        shards=ordered,
    )
    if storage.put_if_absent(MANIFEST_FILE, manifest.model_dump_json(indent=1).encode()):
        return manifest
    return read_manifest(storage)


def read_manifest(storage: Storage) -> Manifest:
    """The manifest of a published run.

    Raises:
        UsageError: If the run is not published, or the manifest is not one of this version.
    """
    try:
        return Manifest.model_validate_json(storage.read(MANIFEST_FILE))
    except StorageNotFound:
        raise UsageError(
            f"{storage.uri}: no published annotations ({MANIFEST_FILE} is missing); the same `mmva annotate` command "
            "again finishes a run that was cut short"
        ) from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UsageError(f"{storage.join(MANIFEST_FILE)}: not a manifest of this version ({reason})") from None


def generations(storage: Storage, settings: StorageSettings | None = None) -> list[Storage]:
    """Places of all published generations: the run itself, then its retries in the order they were made.

    Raises:
        UsageError: If the run itself is not published.
    """
    if not storage.exists(MANIFEST_FILE):
        read_manifest(storage)  # says what is missing
    found = [storage]
    while storage.exists(f"{retry_folder(len(found))}/{MANIFEST_FILE}"):
        found.append(open_storage(storage.join(retry_folder(len(found))), settings))
    return found


def retry_folder(number: int) -> str:
    """Where the retry of this number (from 1) stands, relative to the run."""
    return f"{RETRIES}/{number:04d}"


def identity(places: Iterable[Storage]) -> str:
    """SHA-256 over the manifests of these generations: what names a published annotation."""
    return sha256_hex("".join(sha256_hex(place.read(MANIFEST_FILE)) for place in places).encode())


def iter_annotations(out: str, settings: StorageSettings | None = None) -> Iterator[pa.Table]:
    """Annotations of all published generations, one table a file (ANNOTATION_SCHEMA), so that memory does not grow.

    Raises:
        UsageError: If the run is not published.
        CheckFailed: If a file is not the one that was published.
    """
    for place in generations(open_storage(out, settings), settings):
        for commit in read_manifest(place).shards:
            if commit.data is not None:
                yield read_file(place, commit.data)


def iter_quarantine(out: str, settings: StorageSettings | None = None) -> Iterator[pa.Table]:
    """What is quarantined after the last published retry, one table a file; raises as iter_annotations."""
    place = generations(open_storage(out, settings), settings)[-1]
    for commit in read_manifest(place).shards:
        if commit.quarantine is not None:
            yield read_file(place, commit.quarantine)


def read_annotations(out: str, settings: StorageSettings | None = None) -> pa.Table:
    """All annotations of a published run and its retries, each in its plan's order; raises as iter_annotations."""
    return pa.concat_tables([ANNOTATION_SCHEMA.empty_table(), *iter_annotations(out, settings)])


def read_quarantine(out: str, settings: StorageSettings | None = None) -> pa.Table:
    """All items that are quarantined after the last retry, in the plan's order; raises as iter_annotations."""
    return pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *iter_quarantine(out, settings)])


def to_ray(out: str, settings: StorageSettings | None = None, columns: Sequence[str] | None = None) -> ray.data.Dataset:
    """A published annotation as a ray.data.Dataset over exactly the published files; needs a Ray session.

    Args:
        out: The run.
        settings: How to reach storage.
        columns: Read only these.

    Raises:
        UsageError: If the run is not published, or holds no annotated item.
    """
    places = generations(open_storage(out, settings), settings)
    names = [
        f"{place.uri.removeprefix(places[0].uri)}/{commit.data.path}".lstrip("/")
        for place in places
        for commit in read_manifest(place).shards
        if commit.data is not None
    ]
    if not names:
        raise UsageError(f"{places[0].uri}: no item is annotated; see the quarantine")
    return read_as_ray(places[0], names, columns)


def read_file(storage: Storage, record: FileRecord, columns: Sequence[str] | None = None) -> pa.Table:
    """One file of a shard, all its bytes checked against its record; `columns` decodes only these.

    Raises:
        CheckFailed: If its bytes are not those that were committed.
    """
    data = storage.read(record.path)
    if sha256_hex(data) != record.sha256:
        raise CheckFailed(f"{storage.join(record.path)}: changed since it was written (SHA-256 differs)")
    return parquet_to_table(data, columns)

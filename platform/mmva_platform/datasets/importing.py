"""Published label files and a folder of media -> an immutable, sharded dataset and a report of what was wrong.

One pass over the media on the cluster: each worker reads, hashes and decodes the files of a shard, and writes it.
What content comes twice is known only then: shards that lose a row by it, or whose split it moves, are written once
more, from themselves. The same input gives the same bytes, so an import that was interrupted is resumed by running it
again: until dataset.json stands there is no dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from pydantic import Field

from mmva.errors import UsageError
from mmva.imemnet.published import Labels
from mmva.imemnet.splits import (
    FRACTIONS,
    LEAKAGE_WARNING,
    read_split_file,
    split_by_clip,
    split_by_file,
    split_by_group,
)
from mmva_platform.cluster import ray_session
from mmva_platform.datasets.candidates import Candidate, find_media, read_labels, read_table
from mmva_platform.datasets.inspection import Inspected, settle
from mmva_platform.datasets.report import Finding, ImportReport, count_rows
from mmva_platform.datasets.schema import (
    DATASET_FILE,
    LABELS_FILE,
    REPORT_FILE,
    ShardInfo,
    SplitInfo,
    json_bytes,
    parquet_bytes,
    sha256_of,
)
from mmva_platform.datasets.sharding import Planned, Row, describe, labels_table, plan_shards
from mmva_platform.datasets.writing import amend_shards, write_shards
from mmva_platform.settings import Config, Settings
from mmva_platform.storage import Storage, open_storage


class ImportConfig(Config):
    """What to import, and how to split it."""

    images_csv: str | None = Field(None, description="image_va.csv as published: img, valence, arousal")
    music_csv: str | None = Field(None, description="music_va.csv as published: Clip ID, Valence, Arousal, Caption")
    media: str = Field(description="folder or URI that holds the media files, at any depth")
    split: str = Field("song", description='"song" (no leakage), "clip" (leaks), or a CSV of song_id,split')
    seed: int = Field(0, description="of the split")
    fractions: tuple[float, float, float] = Field(
        FRACTIONS, description="shares of the groups for train, val and test; IMEMNet's own by default"
    )
    shard_mb: float = Field(64.0, gt=0, description="media of one shard, in MB")
    shard_rows: int = Field(512, ge=1, description="most rows of one shard")


def import_dataset(config: ImportConfig, out: str, settings: Settings | None = None) -> ImportReport:
    """Import as configured.

    Args:
        config: What and how.
        out: URI of the new dataset.
        settings: Storage and cluster.

    Returns:
        The report that also stands in import_report.json.

    Raises:
        UsageError: If `out` holds a dataset, a label file is no such file, or no usable item is left.
        StorageError: If something cannot be read or written.
    """
    settings = settings or Settings()
    target = open_storage(out, settings.storage)
    if target.exists(DATASET_FILE):
        raise UsageError(f"{out}: holds a dataset already, and datasets are immutable; choose another --out")
    media = open_storage(config.media, settings.storage)
    labels = read_labels(config.images_csv, config.music_csv, settings.storage)
    split_of = _read_split_file(config, settings)
    candidates, findings = find_media(labels, media)
    planned = _plan(sorted(candidates), config, split_of)
    with ray_session(settings.cluster):
        written = write_shards(planned, media, target, settings.cluster)
        kept, found = settle([entry for one in written for entry in one.inspected])
        findings += found
        _require_all(labels, kept, findings, target)
        splits = _split([entry.candidate for entry in kept], config, split_of)
        rows = [Row(entry, split) for entry, split in zip(kept, splits, strict=True)]
        shards = amend_shards(written, rows, target, settings.cluster)
    return _publish(config, target, labels=labels, rows=rows, shards=shards, findings=findings)


def _read_split_file(config: ImportConfig, settings: Settings) -> dict[str, str] | None:
    if config.split in {"song", "clip"}:
        return None
    return read_split_file(read_table(config.split, settings.storage), config.split)


def _plan(candidates: Sequence[Candidate], config: ImportConfig, split_of: Mapping[str, str] | None) -> list[Planned]:
    """Shards of all candidates, split as if all of them decoded."""
    split_at = dict(zip(candidates, _split(candidates, config, split_of), strict=True))
    return [
        Planned(name, tuple(shard), tuple(split_at[candidate] for candidate in shard))
        for name, shard in plan_shards(candidates, int(config.shard_mb * 1e6), config.shard_rows)
    ]


def _require_all(
    labels: Sequence[Labels], kept: Sequence[Inspected], findings: Sequence[Finding], target: Storage
) -> None:
    """Stop where a modality has nothing left; the report that says why is written all the same."""
    left = {entry.candidate.modality for entry in kept}
    for table in labels:
        if table.modality in left:
            continue
        report = _report(target, labels, kept, findings)
        target.write(REPORT_FILE, json_bytes(report.to_json()))
        causes = Counter(f.code for f in findings if f.modality == table.modality and f.dropped)
        why = ", ".join(f"{code} {n}" for code, n in causes.most_common()) or "the label file has no rows"
        raise UsageError(f"import: no usable {table.modality} items are left ({why}); see {target.join(REPORT_FILE)}")


def _split(candidates: Sequence[Candidate], config: ImportConfig, split_of: Mapping[str, str] | None) -> list[str]:
    """Split of each, sorted by modality; a split file names songs only, so images then get the seeded one by image."""
    found: list[str] = []
    for modality, own in groupby(candidates, key=lambda candidate: candidate.modality):
        entries = list(own)
        groups = [candidate.group for candidate in entries]
        if modality != "music" or config.split == "song":
            splits = split_by_group(groups, config.seed, config.fractions)
        elif split_of is not None:
            splits = split_by_file(groups, split_of)
        else:
            splits = split_by_clip([candidate.id for candidate in entries], config.seed, config.fractions)
        found += map(str, splits)
    return found


def _publish(
    config: ImportConfig,
    target: Storage,
    *,
    labels: Sequence[Labels],
    rows: Sequence[Row],
    shards: Sequence[ShardInfo],
    findings: Sequence[Finding],
) -> ImportReport:
    table = labels_table(rows)
    data = parquet_bytes(table)
    leaks = config.split == "clip" and any(table.modality == "music" for table in labels)
    warnings = (LEAKAGE_WARNING,) if leaks else ()
    policy = config.split if config.split in {"song", "clip"} else f"file {config.split.rsplit('/', 1)[-1]}"
    info = describe(table, sha256_of(data), shards, SplitInfo(policy=policy, seed=config.seed), warnings)
    kept = [row.entry for row in rows]
    report = _report(target, labels, kept, findings, digest=info.digest, splits=info.counts, warnings=warnings)
    target.write(LABELS_FILE, data)
    target.write(REPORT_FILE, json_bytes(report.to_json()))
    if not target.put_if_absent(DATASET_FILE, json_bytes(info.model_dump())):
        raise UsageError(f"{target.uri}: another import finished there first; choose another --out")
    return report


def _report(
    target: Storage,
    labels: Sequence[Labels],
    kept: Sequence[Inspected],
    findings: Sequence[Finding],
    *,
    digest: str = "",
    splits: dict[str, dict[str, int]] | None = None,
    warnings: tuple[str, ...] = (),
) -> ImportReport:
    counts = {}
    for table in labels:
        own = [entry.candidate for entry in kept if entry.candidate.modality == table.modality]
        missing = sum(not candidate.caption for candidate in own) if table.modality == "music" else 0
        counts[table.modality] = count_rows(table.modality, table.rows_in, len(own), findings, captions_missing=missing)
    return ImportReport(target.uri, digest, counts, splits or {}, list(findings), warnings)

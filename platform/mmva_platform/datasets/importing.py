"""Published label files and a folder of media -> an immutable, sharded dataset and a report of what was wrong.

One pass over the media on the cluster: a worker reads, hashes and decodes the files of a shard, and writes it. Which
content occurs twice is known only after that pass: shards that lose a row by it, or whose split changes, are written
again. The same input gives the same bytes, so an interrupted import is resumed by running it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import pyarrow as pa
from pydantic import Field

from mmva.errors import OperationFailed, UsageError
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
from mmva_platform.datasets.candidates import Candidate, find_media, plan_shards, read_labels, read_table
from mmva_platform.datasets.inspection import Inspected, settle
from mmva_platform.datasets.report import Finding, ImportReport, count_rows
from mmva_platform.datasets.schema import (
    DATASET_FILE,
    LABELS_SCHEMA,
    SHARDS_FOLDER,
    DatasetInfo,
    ShardInfo,
    SplitInfo,
    describe,
    json_bytes,
    require_files,
    write_labels,
    write_report,
)
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
        The report, which is also written next to the dataset.

    Raises:
        UsageError: If `out` holds a dataset or another import publishes one there meanwhile, a label file does not
            exist, or no usable item is left.
        EnvironmentFault: If the workers do not see the files that this process listed.
        StorageError: If something cannot be read or written.
    """
    settings = settings or Settings()
    target = open_storage(out, settings.storage)
    if target.exists(DATASET_FILE):
        raise UsageError(f"{out}: holds a dataset already, and datasets are immutable; choose another --out")
    media = open_storage(config.media, settings.storage)
    labels = read_labels(config.images_csv, config.music_csv, settings.storage)
    split_file = _read_split_file(config, settings)
    candidates, findings = find_media(labels, media)
    candidates.sort()
    splits = _split(candidates, config, split_file)  # as if all of them decode
    planned = plan_shards(candidates, splits, int(config.shard_mb * 1e6), config.shard_rows)
    try:
        with ray_session(settings.cluster):
            written = write_shards(planned, media, target, settings)
            kept, found = settle([entry for one in written for entry in one.inspected])
            findings += found
            _require_all(labels, kept, findings, target)
            splits = _split([entry.candidate for entry in kept], config, split_file)
            keys = [(str(entry.candidate.modality), entry.candidate.id) for entry in kept]
            split_of = dict(zip(keys, splits, strict=True))
            shards = amend_shards(written, split_of, target, settings)
    except OperationFailed as error:
        if target.exists(DATASET_FILE):  # the other import has removed files that this one had in common with it
            raise _lost(target) from error
        raise
    first = [one.shard.name for one in written if one.shard is not None]
    return _publish(
        config, target, labels=labels, kept=kept, splits=splits, shards=shards, findings=findings, own=first
    )


def _read_split_file(config: ImportConfig, settings: Settings) -> dict[str, str] | None:
    if config.split in {"song", "clip"}:
        return None
    return read_split_file(read_table(config.split, settings.storage), config.split)


def _require_all(
    labels: Sequence[Labels], kept: Sequence[Inspected], findings: Sequence[Finding], target: Storage
) -> None:
    """Stop if a modality has nothing left; the report that says why is written nevertheless."""
    left = {entry.candidate.modality for entry in kept}
    for table in labels:
        if table.modality in left:
            continue
        report = write_report(target, _report(target, labels, kept, findings).to_file())
        causes = Counter(f.code for f in findings if f.modality == table.modality and f.dropped)
        why = ", ".join(f"{code} {n}" for code, n in causes.most_common()) or "the label file has no rows"
        raise UsageError(f"import: no usable {table.modality} items are left ({why}); see {target.join(report.name)}")


def _split(candidates: Sequence[Candidate], config: ImportConfig, split_of: Mapping[str, str] | None) -> list[str]:
    """Split of each candidate, sorted by modality. A split file has only songs, so images then get the seeded split."""
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
    kept: Sequence[Inspected],
    splits: Sequence[str],
    shards: Sequence[ShardInfo],
    findings: Sequence[Finding],
    own: Iterable[str],
) -> ImportReport:
    """Write labels, report and dataset.json; `own` are the shards that this import wrote first."""
    require_files(target, SHARDS_FOLDER, (shard.name for shard in shards))
    rows = [entry.row(split) for entry, split in zip(kept, splits, strict=True)]
    table = pa.Table.from_pylist(rows, schema=LABELS_SCHEMA)
    leaks = config.split == "clip" and any(one.modality == "music" for one in labels)
    warnings = (LEAKAGE_WARNING,) if leaks else ()
    policy = config.split if config.split in {"song", "clip"} else f"file {config.split.rsplit('/', 1)[-1]}"
    info = describe(
        table,
        shards,
        labels=write_labels(target, table),
        split=SplitInfo(policy=policy, seed=config.seed),
        warnings=warnings,
    )
    report = _report(target, labels, kept, findings, digest=info.digest, splits=info.counts, warnings=warnings)
    info = info.model_copy(update={"report_file": write_report(target, report.to_file()).name})
    won = target.put_if_absent(DATASET_FILE, json_bytes(info.model_dump()))
    _remove_superseded(target, {*own, *info.files})
    if not won:
        raise _lost(target)
    return report


def _remove_superseded(target: Storage, own: set[str]) -> None:
    """Delete files that this import wrote and that the published dataset does not name, whoever published it."""
    published = DatasetInfo.model_validate_json(target.read(DATASET_FILE))
    for name in sorted(own - published.files):
        target.delete(name)


def _lost(target: Storage) -> UsageError:
    return UsageError(f"{target.uri}: another import finished there first; choose another --out")


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

"""Sources -> an immutable, sharded dataset and a report of the problems.

One pass over the media on the cluster: a worker reads, hashes and decodes the files of a shard, and writes it. Only
then is it known which content occurs twice: shards that lose a row by it, or whose split changes, are written again.
The same input gives the same bytes, so an interrupted import is resumed by running it again.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from mmva.errors import OperationFailed, UsageError
from mmva_platform.cluster import ray_session
from mmva_platform.datasets import schema
from mmva_platform.datasets.candidates import Candidate, find_media, plan_shards
from mmva_platform.datasets.import_plan import Import, ImportConfig
from mmva_platform.datasets.inspection import Inspected, settle
from mmva_platform.datasets.report import Finding, ImportReport
from mmva_platform.datasets.sources.reading import read_source
from mmva_platform.datasets.writing import amend_shards, write_shards
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

__all__ = ["ImportConfig", "import_dataset"]


def import_dataset(config: ImportConfig, out: str, settings: Settings | None = None) -> ImportReport:
    """Import as configured into the URI `out`; returns the report, which is also written next to the dataset.

    Raises UsageError if `out` holds a dataset or another import publishes one there meanwhile, a table does not exist
    or lacks a column, or no usable item of a source is left; EnvironmentFault if the workers do not see the files that
    this process listed; StorageError if something cannot be read or written.
    """
    settings = settings or Settings()
    target = open_storage(out, settings.storage)
    if target.exists(schema.DATASET_FILE):
        raise UsageError(f"{out}: holds a dataset already, and datasets are immutable; choose another --out")
    work = Import(config, tuple(read_source(source, settings.storage) for source in config.sources), target)
    candidates: list[Candidate] = []
    findings: list[Finding] = []
    for collection in work.collections:
        rows, found = find_media(collection)
        candidates += rows
        findings += found
    candidates.sort(key=lambda candidate: candidate.place)
    work.require_all(candidates, findings)
    splits = work.split(candidates)  # as if all of them decode
    planned = plan_shards(candidates, splits, int(config.shard_mb * 1e6), config.shard_rows)
    media = {collection.name: collection.media for collection in work.collections}
    try:
        with ray_session(settings.cluster):
            written = write_shards(planned, media, target, settings)
            kept, found = settle([entry for one in written for entry in one.inspected])
            findings += found
            work.require_all([entry.candidate for entry in kept], findings)
            splits = work.split([entry.candidate for entry in kept])
            keys = [(str(entry.candidate.modality), entry.candidate.id) for entry in kept]
            split_of = dict(zip(keys, splits, strict=True))
            shards = amend_shards(written, split_of, target, settings)
    except OperationFailed as error:
        if target.exists(schema.DATASET_FILE):  # the other import has removed files that this one had in common with it
            raise _lost(target) from error
        raise
    first = [one.shard.name for one in written if one.shard is not None]
    return _publish(work, kept=kept, splits=splits, shards=shards, findings=findings, own=first)


def _publish(
    work: Import,
    *,
    kept: Sequence[Inspected],
    splits: Sequence[str],
    shards: Sequence[schema.ShardInfo],
    findings: Sequence[Finding],
    own: Iterable[str],
) -> ImportReport:
    """Write labels, report and dataset.json; `own` are the shards that this import wrote first."""
    target = work.target
    schema.require_files(target, schema.SHARDS_FOLDER, (shard.name for shard in shards))
    rows = [entry.row(split) for entry, split in zip(kept, splits, strict=True)]
    table = pa.Table.from_pylist(rows, schema=schema.LABELS_SCHEMA)
    terms = {name: text for collection in work.collections for name, text in collection.terms.items()}
    info = schema.describe(
        table,
        shards,
        labels=schema.write_labels(target, table),
        split=schema.SplitInfo(policy=work.policy, seed=work.config.seed),
        terms=terms,
        warnings=work.warnings,
    )
    report = work.report([entry.candidate for entry in kept], splits, findings, info)
    info = info.model_copy(update={"report_file": schema.write_report(target, report.to_file()).name})
    won = target.put_if_absent(schema.DATASET_FILE, schema.json_bytes(info.model_dump()))
    _remove_superseded(target, {*own, *info.files})
    if not won:
        raise _lost(target)
    return report


def _remove_superseded(target: Storage, own: set[str]) -> None:
    """Delete files that this import wrote and the published dataset, ours or another's, does not name."""
    published = schema.DatasetInfo.model_validate_json(target.read(schema.DATASET_FILE))
    for name in sorted(own - published.files):
        target.delete(name)


def _lost(target: Storage) -> UsageError:
    return UsageError(f"{target.uri}: another import finished there first; choose another --out")

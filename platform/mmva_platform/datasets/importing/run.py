"""Sources -> an immutable, sharded dataset and a report of the problems.

One pass over the media on the cluster: a worker reads, hashes and decodes the files of a shard, and writes it. Repeated
content is only known after that pass: shards that lose a row to it, or whose split changes, are written again. The same
input gives the same bytes, so an interrupted import is resumed by running it again.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
from pydantic import Field, field_validator

from mmva.data.splits import SPLIT_SIZES, split_groups
from mmva.errors import OperationFailed, UsageError
from mmva.imemnet.splits import FRACTIONS, LEAKAGE_WARNING, split_by_file, split_by_group
from mmva.modalities import MODALITIES, Modality
from mmva_platform.cluster import ray_session
from mmva_platform.datasets import schema
from mmva_platform.datasets.importing.candidates import Candidate, find_media, plan_shards
from mmva_platform.datasets.importing.inspection import Inspected, settle
from mmva_platform.datasets.importing.report import Finding, ImportReport, ModalityCounts, count_rows, total
from mmva_platform.datasets.importing.writing import amend_shards, write_shards
from mmva_platform.datasets.schema import DatasetInfo
from mmva_platform.datasets.sources.config import ImemnetSource, Source
from mmva_platform.datasets.sources.reading import Collection, read_source
from mmva_platform.settings import Config, Settings
from mmva_platform.storage import Storage, open_storage

__all__ = ["ImportConfig", "import_dataset"]
Sizes = tuple[float, float, float]


class ImportConfig(Config):
    """The sources of an import, and how to split them."""

    sources: tuple[Source, ...] = Field(min_length=1, description="see mmva_platform.datasets.sources.config")
    seed: int = Field(0, description="of the split")
    fractions: Sizes | None = Field(
        None, description="sizes of train, val and test; default .7, .15, .15 of the rows, IMEMNet-C: .8, .05, .15"
    )
    shard_mb: float = Field(64.0, gt=0, description="most MB of media in a shard")
    shard_rows: int = Field(512, ge=1, description="most rows of a shard")

    @field_validator("sources")
    @classmethod
    def _named_apart(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        repeated = [name for name, count in Counter(source.name for source in sources).items() if count > 1]
        if repeated:
            raise ValueError(f"two sources are called {repeated[0]!r}; give each a name of its own")
        return sources


@dataclass(frozen=True)
class Import:
    """Sources and target of an import."""

    config: ImportConfig
    collections: tuple[Collection, ...]
    target: Storage

    def require_all(self, left: Sequence[Candidate], findings: Sequence[Finding]) -> None:
        """If a modality of a source has no rows left, write the report and raise UsageError."""
        parts = {candidate.part for candidate in left}
        for collection in self.collections:
            for labels in collection.labels:
                if (labels.modality, collection.name) in parts:
                    continue
                written = self.report(left, [""] * len(left), findings).write(self.target)
                own = [f for f in findings if (f.source, f.modality) == (collection.name, labels.modality)]
                causes = Counter(finding.code for finding in own if finding.dropped)
                why = ", ".join(f"{code} {n}" for code, n in causes.most_common()) or "the table has no rows"
                raise UsageError(
                    f"import: no usable {labels.modality} items of {collection.name} are left ({why}); "
                    f"see {self.target.join(written)}"
                )

    def split(self, candidates: Sequence[Candidate]) -> list[str]:
        """Split of each candidate, sorted by place. Each source is split on its own, in the requested sizes."""
        by_name = {collection.name: collection for collection in self.collections}
        found: list[str] = []
        for (_, name), own in groupby(candidates, key=lambda candidate: candidate.part):
            found += self._split_part(list(own), by_name[name])
        return found

    def _split_part(self, own: Sequence[Candidate], collection: Collection) -> list[str]:
        source, seed = collection.source, self.config.seed
        groups = [candidate.group for candidate in own]
        if not isinstance(source, ImemnetSource):
            if own[0].split:
                return [candidate.split for candidate in own]
            va_N2 = [(candidate.valence, candidate.arousal) for candidate in own]
            try:
                return split_groups(groups, va_N2, self.config.fractions or SPLIT_SIZES, seed).tolist()
            except UsageError as error:
                raise UsageError(f"import: {source.name}: {error}") from None
        # A split file has only songs, so images then get the seeded split.
        if own[0].modality != "music" or source.split == "song":
            return split_by_group(groups, seed, self.config.fractions or FRACTIONS).tolist()
        if collection.split_of is not None:
            return split_by_file(groups, collection.split_of).tolist()
        # By clip: it leaks (LEAKAGE_WARNING), and exists for comparison.
        return split_by_group([candidate.id for candidate in own], seed, self.config.fractions or FRACTIONS).tolist()

    @property
    def policy(self) -> str:
        """How the rows were split, for dataset.json."""
        policies = []
        for collection in self.collections:
            source = collection.source
            if isinstance(source, ImemnetSource):
                named = source.split in {"song", "clip"}
                policies.append(source.split if named else f"file {source.split.rsplit('/', 1)[-1]}")
            else:
                given = any((labels.rows["split"] != "").any() for labels in collection.labels)
                policies.append("given" if given else "group")
        return ", ".join(dict.fromkeys(policies))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings that every later report must repeat."""
        leaks = any(
            isinstance(one.source, ImemnetSource)
            and one.source.split == "clip"
            and any(labels.modality == "music" for labels in one.labels)
            for one in self.collections
        )
        return (LEAKAGE_WARNING,) if leaks else ()

    def report(
        self,
        left: Sequence[Candidate],
        splits: Sequence[str],
        findings: Sequence[Finding],
        info: DatasetInfo | None = None,
    ) -> ImportReport:
        """Counts of the rows that are left, by source; `info` is the dataset's if there is one."""
        split_of: dict[tuple[str, str], Counter[str]] = {}
        captionless: Counter[tuple[str, str]] = Counter()
        for candidate, split in zip(left, splits, strict=True):
            split_of.setdefault(candidate.part, Counter())[split] += 1
            captionless[candidate.part] += not candidate.caption
        sources: dict[str, dict[Modality, ModalityCounts]] = {}
        for collection in self.collections:
            for labels in collection.labels:
                part = (labels.modality, collection.name)
                own = split_of.get(part, Counter())
                captioned = labels.modality == "music" and (labels.rows["caption"] != "").any()
                sources.setdefault(collection.name, {})[labels.modality] = count_rows(
                    labels.rows_in,
                    own.total(),
                    [f for f in findings if (f.modality, f.source) == part],
                    captions_missing=captionless[part] if captioned else 0,
                    splits=own,
                )
        counts = {
            modality: total([by[modality] for by in sources.values() if modality in by])
            for modality in MODALITIES
            if any(modality in by for by in sources.values())
        }
        digest, in_splits = (info.digest, info.counts) if info else ("", {})
        warnings = self.warnings if info else ()
        return ImportReport(self.target.uri, digest, counts, sources, in_splits, list(findings), warnings)


def import_dataset(config: ImportConfig, out: str, settings: Settings | None = None) -> ImportReport:
    """Import as configured into the URI `out`; returns the report, which is also written next to the dataset.

    Raises UsageError if `out` has a dataset or another import publishes one there meanwhile, a table does not exist or
    lacks a column, or no usable item of a source is left; EnvironmentFault if the workers do not see the files that
    this process listed; StorageError if a file cannot be read or written.
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
    splits = work.split(candidates)  # on the assumption that all of them decode
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
        if target.exists(schema.DATASET_FILE):  # another import won and removed files that both had written
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
        labels=schema.write_by_digest(target, "labels", ".parquet", schema.parquet_bytes(table)),
        split=schema.SplitInfo(policy=work.policy, seed=work.config.seed),
        terms=terms,
        warnings=work.warnings,
    )
    report = work.report([entry.candidate for entry in kept], splits, findings, info)
    info = info.model_copy(update={"report_file": report.write(target)})
    won = target.put_if_absent(schema.DATASET_FILE, schema.json_bytes(info.model_dump()))
    _remove_superseded(target, {*own, *info.files})
    if not won:
        raise _lost(target)
    return report


def _remove_superseded(target: Storage, own: set[str]) -> None:
    """Delete files of this import that the published dataset, which may be another import's, does not name."""
    published = schema.DatasetInfo.model_validate_json(target.read(schema.DATASET_FILE))
    for name in sorted(own - published.files):
        target.delete(name)


def _lost(target: Storage) -> UsageError:
    return UsageError(f"{target.uri}: another import finished there first; choose another --out")

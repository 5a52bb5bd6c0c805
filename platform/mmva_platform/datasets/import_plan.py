"""An import: its sources, the split of their rows, and their counts in the report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pydantic import Field, field_validator

from mmva.errors import UsageError
from mmva.imemnet.splits import FRACTIONS, LEAKAGE_WARNING, split_by_clip, split_by_file, split_by_group
from mmva.modalities import MODALITIES, Modality
from mmva.splits import SPLIT_SIZES, split_groups
from mmva_platform.datasets.candidates import Candidate
from mmva_platform.datasets.report import Finding, ImportReport, ModalityCounts, count_rows, total
from mmva_platform.datasets.schema import DatasetInfo, write_report
from mmva_platform.datasets.sources.config import ImemnetSource, Source
from mmva_platform.datasets.sources.reading import Collection
from mmva_platform.settings import Config
from mmva_platform.storage import Storage

Sizes = tuple[float, float, float]


class ImportConfig(Config):
    """What to import, and how to split it."""

    sources: tuple[Source, ...] = Field(min_length=1, description="see mmva_platform.datasets.sources.config")
    seed: int = Field(0, description="of the split")
    fractions: Sizes | None = Field(
        None, description="sizes of train, val and test; default .7, .15, .15 of the rows, IMEMNet-C: .8, .05, .15"
    )
    shard_mb: float = Field(64.0, gt=0, description="media of one shard, in MB")
    shard_rows: int = Field(512, ge=1, description="most rows of one shard")

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
        """Raise UsageError, after writing the report, if a modality of a source has no rows left."""
        parts = {candidate.part for candidate in left}
        for collection in self.collections:
            for labels in collection.labels:
                if (labels.modality, collection.name) in parts:
                    continue
                written = write_report(self.target, self.report(left, [""] * len(left), findings).to_file())
                own = [f for f in findings if (f.source, f.modality) == (collection.name, labels.modality)]
                causes = Counter(finding.code for finding in own if finding.dropped)
                why = ", ".join(f"{code} {n}" for code, n in causes.most_common()) or "the table has no rows"
                raise UsageError(
                    f"import: no usable {labels.modality} items of {collection.name} are left ({why}); "
                    f"see {self.target.join(written.name)}"
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
        return split_by_clip([candidate.id for candidate in own], seed, self.config.fractions or FRACTIONS).tolist()

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
        """What every later report must repeat."""
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

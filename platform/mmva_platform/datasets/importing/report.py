"""The report of an import: every row of the tables is kept or dropped for a cause, and the counts add up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmva.modalities import Modality
from mmva_platform.datasets.schema import json_bytes, write_by_digest
from mmva_platform.storage import Storage


@dataclass(frozen=True)
class Finding:
    """One problem of one id of a source; `dropped` is the number of label rows that were dropped because of it."""

    modality: Modality
    code: str
    id: str
    detail: str
    dropped: int = 0
    source: str = ""


@dataclass(frozen=True)
class ModalityCounts:
    """Rows of one modality, of one source or of all: rows = kept + sum of dropped; `splits` counts the kept rows."""

    rows: int
    kept: int
    dropped: dict[str, int]
    captions_missing: int = 0
    splits: dict[str, int] | None = None


@dataclass(frozen=True)
class ImportReport:
    """What an import kept and dropped."""

    out: str  # URI of the dataset
    digest: str  # of the dataset; "" if no usable item was left
    counts: dict[Modality, ModalityCounts]
    sources: dict[str, dict[Modality, ModalityCounts]]
    splits: dict[str, dict[str, int]]  # kept rows by modality and split
    problems: list[Finding]  # every finding, in order
    warnings: tuple[str, ...]  # every later report must repeat them

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def write(self, storage: Storage) -> str:
        """Write the file next to the dataset and return its name. It has no URI, because a dataset may be copied."""
        values = {name: value for name, value in self.to_json().items() if name != "out"}
        return write_by_digest(storage, "import_report", ".json", json_bytes(values)).name

    def to_text(self) -> str:
        """A few lines for a person: counts by source and modality, causes with an example each."""
        lines = []
        for source, by_modality in self.sources.items():
            for modality, counts in by_modality.items():
                lines += self._text_of(source, modality, counts)
        lines += [f"WARNING: {warning}" for warning in self.warnings]
        if self.digest:
            lines.append(f"dataset {self.digest[:12]} in {self.out}")
        return "\n".join(lines)

    def _text_of(self, source: str, modality: Modality, counts: ModalityCounts) -> list[str]:
        splits = ", ".join(f"{name} {n:,}" for name, n in (counts.splits or {}).items())
        dropped = counts.rows - counts.kept
        lines = [f"{source}, {modality}: {counts.rows:,} rows = {counts.kept:,} kept ({splits}) + {dropped:,} dropped"]
        found = [finding for finding in self.problems if (finding.source, finding.modality) == (source, modality)]
        for code, number in Counter(finding.code for finding in found).most_common():
            example = next(finding for finding in found if finding.code == code)
            cost = f"{counts.dropped.get(code, 0):,} rows dropped"
            lines.append(f"  {code}: {number:,} ({cost}), such as {example.id!r}: {example.detail}")
        if counts.captions_missing:
            lines.append(f"  {counts.captions_missing:,} kept without a caption")
        return lines


def count_rows(
    rows: int, kept: int, findings: Sequence[Finding], *, captions_missing: int = 0, splits: Mapping[str, int]
) -> ModalityCounts:
    """Counts of one modality of one source, from its findings; they must add up."""
    dropped: Counter[str] = Counter()
    for finding in findings:
        if finding.dropped:
            dropped[finding.code] += finding.dropped
    assert rows == kept + dropped.total(), f"{rows} rows, {kept} kept, dropped {dict(dropped)}"
    return ModalityCounts(rows, kept, dict(sorted(dropped.items())), captions_missing, dict(sorted(splits.items())))


def total(counts: Sequence[ModalityCounts]) -> ModalityCounts:
    """Counts of one modality over its sources."""
    dropped = sum((Counter(one.dropped) for one in counts), Counter())
    splits = sum((Counter(one.splits or {}) for one in counts), Counter())
    return ModalityCounts(
        sum(one.rows for one in counts),
        sum(one.kept for one in counts),
        dict(sorted(dropped.items())),
        sum(one.captions_missing for one in counts),
        dict(sorted(splits.items())),
    )

"""What an import found: every row of the label files is kept, or dropped for a cause, and the counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmva.modalities import Modality


@dataclass(frozen=True)
class Finding:
    """One problem of one id; `dropped` is the number of label rows that were dropped for it."""

    modality: Modality
    code: str
    id: str
    detail: str
    dropped: int = 0


@dataclass(frozen=True)
class ModalityCounts:
    """Rows of one modality: rows = kept + sum of dropped."""

    rows: int
    kept: int
    dropped: dict[str, int]
    captions_missing: int = 0


@dataclass(frozen=True)
class ImportReport:
    """What an import kept and dropped.

    Attributes:
        out: URI of the dataset.
        digest: Of the dataset; "" if no usable item was left.
        counts: By modality.
        splits: Kept rows by modality and split.
        problems: Every finding, in order.
        warnings: What every later report must repeat.
    """

    out: str
    digest: str
    counts: dict[Modality, ModalityCounts]
    splits: dict[str, dict[str, int]]
    problems: list[Finding]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def to_file(self) -> dict[str, Any]:
        """Plain values for the file next to the dataset, which may be copied to another place."""
        return {name: value for name, value in self.to_json().items() if name != "out"}

    def to_text(self) -> str:
        """A few lines for a person: counts by modality, causes with an example each."""
        lines = []
        for modality, counts in self.counts.items():
            splits = ", ".join(f"{name} {n:,}" for name, n in self.splits.get(modality, {}).items())
            dropped = counts.rows - counts.kept
            lines.append(f"{modality}: {counts.rows:,} rows = {counts.kept:,} kept ({splits}) + {dropped:,} dropped")
            found = [finding for finding in self.problems if finding.modality == modality]
            for code, number in Counter(finding.code for finding in found).most_common():
                example = next(finding for finding in found if finding.code == code)
                cost = f"{counts.dropped.get(code, 0):,} rows dropped"
                lines.append(f"  {code}: {number:,} ({cost}), such as {example.id!r}: {example.detail}")
            if counts.captions_missing:
                lines.append(f"  {counts.captions_missing:,} kept without a caption")
        lines += [f"WARNING: {warning}" for warning in self.warnings]
        if self.digest:
            lines.append(f"dataset {self.digest[:12]} in {self.out}")
        return "\n".join(lines)


def count_rows(
    modality: Modality, rows: int, kept: int, findings: Sequence[Finding], *, captions_missing: int = 0
) -> ModalityCounts:
    """Counts of one modality; that they add up is an invariant."""
    dropped: Counter[str] = Counter()
    for finding in findings:
        if finding.modality == modality and finding.dropped:
            dropped[finding.code] += finding.dropped
    assert rows == kept + dropped.total(), f"{modality}: {rows} rows, {kept} kept, dropped {dict(dropped)}"
    return ModalityCounts(rows, kept, dict(sorted(dropped.items())), captions_missing)

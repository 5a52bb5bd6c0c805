"""Findings of rules, and the verdict on them: plain values that are recorded and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmva.errors import CheckFailed

_NAMED = 3  # findings in a refusal's one line
RECORDED = "-"  # the limit of a value that is recorded and compared with nothing


@dataclass(frozen=True)
class Finding:
    """One rule applied to one thing."""

    rule: str
    subject: str  # what it was applied to
    value: float | str | None  # None if it is missing
    limit: float | str | None  # what the value is compared with, or RECORDED
    passed: bool
    note: str = ""
    needs: Literal["<", "<=", ">=", "="] = "="  # the comparison of value and limit
    detail: Mapping[str, float] | None = None  # for a page: first, second, low, high, groups of a paired difference

    def __str__(self) -> str:
        """For example "below-constant image/valence: 0.0310, needs < 0.0240"."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.rule} {self.subject}: {self.shown}, needs {self.needed}{note}"

    @property
    def shown(self) -> str:
        """The value for a table."""
        return _as_text(self.value)

    @property
    def needed(self) -> str:
        """For example "< 0.0240"; "-" if nothing is needed."""
        return RECORDED if self.limit == RECORDED else f"{self.needs} {_as_text(self.limit)}"


@dataclass(frozen=True)
class Verdict:
    """A decision: by which findings, about which versions, by whom, when and why."""

    action: str  # "promote", "rollback", "challenge" or, never recorded, "compare"
    candidate: int  # the version that is to be champion
    champion: int | None  # the champion it was judged against
    candidate_digest: str  # of its bundle
    dataset_digest: str  # of the dataset that the candidate was registered with
    findings: tuple[Finding, ...]  # of every rule that applied
    passed: bool
    who: str
    when: str  # UTC, ISO 8601
    why: str
    forced: bool = False  # done although the gate refused it
    policy: Mapping[str, Any] | None = None  # plain values, as the rest
    exam: Mapping[str, Any] | None = None  # dataset, digest, split, embeddings
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # mean MSE by version and modality

    @property
    def carried_out(self) -> bool:
        """Whether the aliases were to move."""
        return self.passed or self.forced

    @property
    def outcome(self) -> str:
        """In one word: passed, forced or refused."""
        return "passed" if self.passed else "forced" if self.forced else "refused"

    @property
    def failures(self) -> list[Finding]:
        """The findings that refuse."""
        return [finding for finding in self.findings if not finding.passed]

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers are finite, missing ones are None."""
        return asdict(self) | {"outcome": self.outcome}

    def to_text(self) -> str:
        """The decision and its numbers: a table for a person."""
        against = "no champion yet" if self.champion is None else f"champion was version {self.champion}"
        said = {"passed": "done", "forced": "FORCED against the gate", "refused": "refused"}[self.outcome]
        if self.action == "compare":
            against, said = f"against version {self.champion}", "would pass" if self.passed else "would be refused"
        lines = [f"{self.action} version {self.candidate} ({against}): {said}"]
        if self.exam:
            lines.append(f"exam: split {self.exam['split']} of {self.exam['dataset']} ({self.exam['digest'][:16]})")
        lines += _table(self.findings)
        if self.findings:
            lines.append(f"{len(self.findings) - len(self.failures)} of {len(self.findings)} findings passed")
        return "\n".join([*lines, f"by {self.who} at {self.when}: {self.why}"])


class GateRefused(CheckFailed):
    """The gate refused a version; the message is one line, `verdict` is all of it, as recorded."""

    def __init__(self, name: str, verdict: Verdict) -> None:
        failures = verdict.failures
        more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        named = "; ".join(str(finding) for finding in failures[:_NAMED])
        super().__init__(f"the gate refused version {verdict.candidate} of {name!r}: {named}{more}")
        self.verdict = verdict


def _table(findings: Sequence[Finding]) -> list[str]:
    """Lines of columns: whether it passed, rule, subject, value, limit, note."""
    cells = [("NO" if not f.passed else "ok", f.rule, f.subject, f.shown, f.needed, f.note) for f in findings]
    header = ("", "rule", "subject", "found", "needed", "")
    widths = [max((len(row[i]) for row in (header, *cells)), default=0) for i in range(5)]
    return [
        ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True))).rstrip()
        for row in ((header, *cells) if cells else ())
    ]


def _as_text(value: float | str | None) -> str:
    """A value for a table: whole numbers as such, "missing" for None."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4f}"

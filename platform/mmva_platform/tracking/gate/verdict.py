"""Findings of rules and the verdict on them, as plain values to record and show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmva.errors import CheckFailed

_NAMED = 3  # findings in a refusal's one line
RECORDED = "-"  # the limit of a value that is only recorded


@dataclass(frozen=True)
class Finding:
    """The result of one rule for one subject."""

    rule: str
    subject: str  # such as image/valence
    value: float | str | None  # None if it is missing
    limit: float | str | None  # the value is compared with it; or RECORDED
    passed: bool
    note: str = ""
    needs: Literal["<", "<=", ">=", "="] = "="  # how value and limit must compare
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
        """For example "< 0.0240"; "-" if there is no limit."""
        return RECORDED if self.limit == RECORDED else f"{self.needs} {_as_text(self.limit)}"


@dataclass(frozen=True)
class Verdict:
    """A decision about versions, with its findings, author, time and reason."""

    action: str  # "promote", "rollback", "challenge" or, never recorded, "compare"
    candidate: int  # the version that is judged
    champion: int | None  # the version that it is compared with
    candidate_digest: str  # of its bundle
    dataset_digest: str  # registered with the candidate
    findings: tuple[Finding, ...]  # of every rule that applied
    passed: bool
    who: str
    when: str  # UTC, ISO 8601
    why: str
    forced: bool = False  # carried out although the gate refused it
    policy: Mapping[str, Any] | None = None  # plain values
    exam: Mapping[str, Any] | None = None  # dataset, digest, split, embeddings
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # mean MSE by version and modality

    @property
    def carried_out(self) -> bool:
        """Whether the aliases may move."""
        return self.passed or self.forced

    @property
    def outcome(self) -> str:
        """One word: passed, forced or refused."""
        return "passed" if self.passed else "forced" if self.forced else "refused"

    @property
    def failures(self) -> list[Finding]:
        """The findings that did not pass."""
        return [finding for finding in self.findings if not finding.passed]

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers are finite, missing ones are None."""
        return asdict(self) | {"outcome": self.outcome}

    def to_text(self) -> str:
        """The decision, and its findings as a table."""
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
    """The gate refused a version. The message is one line; `verdict` is the recorded verdict."""

    def __init__(self, name: str, verdict: Verdict) -> None:
        failures = verdict.failures
        more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        named = "; ".join(str(finding) for finding in failures[:_NAMED])
        super().__init__(f"the gate refused version {verdict.candidate} of {name!r}: {named}{more}")
        self.verdict = verdict


def _table(findings: Sequence[Finding]) -> list[str]:
    """Lines of a table: whether it passed, rule, subject, value, limit, note."""
    cells = [("NO" if not f.passed else "ok", f.rule, f.subject, f.shown, f.needed, f.note) for f in findings]
    header = ("", "rule", "subject", "found", "needed", "")
    widths = [max((len(row[i]) for row in (header, *cells)), default=0) for i in range(5)]
    return [
        ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True))).rstrip()
        for row in ((header, *cells) if cells else ())
    ]


def _as_text(value: float | str | None) -> str:
    """A value for a table; "missing" for None."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4f}"

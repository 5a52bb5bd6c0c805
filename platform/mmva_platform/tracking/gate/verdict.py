"""Findings of rules, and the verdict made of them: plain values that are recorded and shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmva.errors import CheckFailed

_NAMED = 3  # findings in a refusal's one line
RECORDED = "-"  # the limit of a value that is recorded and compared with nothing


@dataclass(frozen=True)
class Finding:
    """One rule applied to one thing.

    Attributes:
        rule: Its name.
        subject: What it was applied to.
        value: What was found; None if it is missing.
        limit: What the value is compared with, or RECORDED.
        passed: Whether the rule is met.
        note: In words, what else to know.
        needs: The comparison of value and limit.
        detail: Numbers behind the value, for a page: first, second, low, high, groups of a paired difference.
    """

    rule: str
    subject: str
    value: float | str | None
    limit: float | str | None
    passed: bool
    note: str = ""
    needs: Literal["<", "<=", ">=", "="] = "="
    detail: Mapping[str, float] | None = None

    def __str__(self) -> str:
        """Such as "below-constant image/valence: 0.0310, needs < 0.0240"."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.rule} {self.subject}: {self.shown}, needs {self.needed}{note}"

    @property
    def shown(self) -> str:
        """The value for a table."""
        return _as_text(self.value)

    @property
    def needed(self) -> str:
        """Such as "< 0.0240"; "-" where nothing is."""
        return RECORDED if self.limit == RECORDED else f"{self.needs} {_as_text(self.limit)}"


@dataclass(frozen=True)
class Verdict:
    """What was decided, by which findings, about which versions, by whom, when and why.

    Attributes:
        action: "promote", "rollback", "challenge" or, judged and not to be recorded, "compare".
        candidate: The version that is to be champion.
        champion: The champion it was judged against.
        candidate_digest: The candidate's bundle.
        dataset_digest: The dataset that the candidate was registered with.
        findings: Of every rule that applied.
        passed: Whether all of them passed.
        who: The user.
        when: UTC, ISO 8601.
        why: The reason given.
        forced: Whether it was done although the gate refused it.
        policy: What was tolerated, plain values.
        exam: The rows it was judged on: dataset, digest, split, embeddings.
        figures: Mean MSE on the exam by version and modality.
    """

    action: str
    candidate: int
    champion: int | None
    candidate_digest: str
    dataset_digest: str
    findings: tuple[Finding, ...]
    passed: bool
    who: str
    when: str
    why: str
    forced: bool = False
    policy: Mapping[str, Any] | None = None
    exam: Mapping[str, Any] | None = None
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

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
        """Plain values; numbers in it are finite, missing ones are None."""
        return asdict(self) | {"outcome": self.outcome}

    def to_text(self) -> str:
        """What was decided and by which numbers: a table for a person."""
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
    """The gate refused a version; the message is one line, `verdict` has all of it, as recorded."""

    def __init__(self, name: str, verdict: Verdict) -> None:
        failures = verdict.failures
        more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        named = "; ".join(str(finding) for finding in failures[:_NAMED])
        super().__init__(f"the gate refused version {verdict.candidate} of {name!r}: {named}{more}")
        self.verdict = verdict


def _table(findings: Sequence[Finding]) -> list[str]:
    """Lines of columns: whether it passed, rule, subject, what was found, what was needed, a note."""
    cells = [("NO" if not f.passed else "ok", f.rule, f.subject, f.shown, f.needed, f.note) for f in findings]
    header = ("", "rule", "subject", "found", "needed", "")
    widths = [max((len(row[i]) for row in (header, *cells)), default=0) for i in range(5)]
    return [
        ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True))).rstrip()
        for row in ((header, *cells) if cells else ())
    ]


def _as_text(value: float | str | None) -> str:
    """A value for a table: whole numbers as such, "missing" for what is."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4f}"

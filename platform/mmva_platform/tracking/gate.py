"""The gate: rules over evidence. No alias moves without a verdict of this module, recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmva.errors import CheckFailed
from mmva_platform.tracking.evidence import Contender, Evidence, Finding, mean_mse, mse_of
from mmva_platform.tracking.policy import GatePolicy
from mmva_platform.tracking.rules import ABSOLUTE, COMPARING, Rule

__all__ = [
    "Contender", "Evidence", "Finding", "GatePolicy", "GateRefused", "Verdict", "judge", "mean_mse", "mse_of",
]  # fmt: skip
_NAMED = 3  # findings in a refusal's one line


def judge(evidence: Evidence, rules: Sequence[Rule] | None = None) -> list[Finding]:
    """All findings of all rules, in order; the candidate passes when there are findings and each of them passed.

    Args:
        evidence: Without a champion, nothing but the absolute rules applies.
        rules: Instead of those that apply.
    """
    if rules is None:
        rules = ABSOLUTE if evidence.champion is None else (*ABSOLUTE, *COMPARING)
    return [finding for rule in rules for finding in rule(evidence)]


@dataclass(frozen=True)
class Verdict:
    """What was decided, by which findings, about which versions, by whom, when and why.

    Attributes:
        action: "promote", "rollback", "challenge" or, judged and not to be recorded, "compare".
        candidate: The version that is to be champion.
        champion: The champion it was judged against.
        candidate_digest: The candidate's bundle.
        dataset_digest: The candidate's dataset.
        findings: Of every rule that applied.
        passed: Whether all of them passed.
        who: The user.
        when: UTC, ISO 8601.
        why: The reason given.
        forced: Whether it was done although the gate said no.
        policy: What was tolerated, plain values.
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

    @property
    def carried_out(self) -> bool:
        """Whether the aliases were to move."""
        return self.passed or self.forced

    @property
    def outcome(self) -> str:
        """In one word: passed, forced or refused."""
        return "passed" if self.passed else "forced" if self.forced else "refused"

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers in it are finite, missing ones are None."""
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings], "outcome": self.outcome}

    def to_text(self) -> str:
        """What was decided and by which numbers: a table for a person."""
        against = "no champion yet" if self.champion is None else f"champion was version {self.champion}"
        said = {"passed": "done", "forced": "FORCED against the gate", "refused": "refused"}[self.outcome]
        if self.action == "compare":
            against, said = f"against version {self.champion}", "would pass" if self.passed else "would be refused"
        lines = [f"{self.action} version {self.candidate} ({against}): {said}", *_table(self.findings)]
        if self.findings:
            lines.append(f"{len(self.findings) - len(self.failures)} of {len(self.findings)} findings passed")
        return "\n".join([*lines, f"by {self.who} at {self.when}: {self.why}"])

    @property
    def failures(self) -> list[Finding]:
        """The findings that said no."""
        return [finding for finding in self.findings if not finding.passed]


class GateRefused(CheckFailed):
    """The gate said no; the message is one line, the verdict has all of it.

    Attributes:
        verdict: As recorded.
    """

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

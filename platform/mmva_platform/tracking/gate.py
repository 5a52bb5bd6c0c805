"""The gate: rules over evidence. No alias moves without a verdict of this module, recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmva_platform.tracking.evidence import Contender, Evidence, Finding, mean_mse, mse_of
from mmva_platform.tracking.policy import GatePolicy
from mmva_platform.tracking.rules import ABSOLUTE, COMPARING, Rule

__all__ = ["Contender", "Evidence", "Finding", "GatePolicy", "Verdict", "judge", "mean_mse", "mse_of"]


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
        action: "promote" or "rollback".
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
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings]}

    def to_text(self) -> str:
        """What was decided and by which numbers, for a person."""
        marks = {True: "ok", False: "NO"}
        against = "no champion yet" if self.champion is None else f"champion was version {self.champion}"
        outcome = {"passed": "done", "forced": "FORCED against the gate", "refused": "refused"}[self.outcome]
        lines = [f"{self.action} version {self.candidate} ({against}): {outcome}"]
        lines += [f"  {marks[finding.passed]}  {finding}" for finding in self.findings]
        return "\n".join([*lines, f"by {self.who} at {self.when}: {self.why}"])

    @property
    def failures(self) -> list[Finding]:
        """The findings that said no."""
        return [finding for finding in self.findings if not finding.passed]

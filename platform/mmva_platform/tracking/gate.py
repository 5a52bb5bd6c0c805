"""The gate: pure rules over recorded evaluations. No alias moves without a verdict of this module, passed and recorded.

A rule is a function of the evidence that yields findings; a policy of more rules is a longer RULES. Whatever is
missing or not a finite number fails: silence is never consent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pydantic import Field

from mmva.modalities import AXES, MODALITIES
from mmva_platform.settings import Config


class GatePolicy(Config):
    """What the gate tolerates."""

    margin: float = Field(
        0.02, ge=0, lt=1, description="share by which a challenger's mean MSE may exceed the champion's, per modality"
    )


@dataclass(frozen=True)
class Contender:
    """A registered version as the gate sees it."""

    version: int
    run_id: str
    model_digest: str
    evaluation: Mapping[str, Any]

    @property
    def rows(self) -> str:
        """What it was evaluated on: the split and the dataset's digest; empty if the evaluation does not say."""
        split, digest = self.evaluation.get("split"), self.evaluation.get("dataset_digest")
        return f"{digest}/{split}" if split and digest else ""


@dataclass(frozen=True)
class Evidence:
    """What a verdict is about; without a champion only the absolute rules can speak."""

    candidate: Contender
    champion: Contender | None
    policy: GatePolicy


@dataclass(frozen=True)
class Finding:
    """One rule applied to one thing: the value found, the limit it was held against, and what that means."""

    rule: str
    subject: str
    value: float | str | None
    limit: float | str | None
    passed: bool

    def __str__(self) -> str:
        """Such as "floor image/valence: .0310 against at most .0240"."""
        return f"{self.rule} {self.subject}: {_text(self.value)} against {_text(self.limit)}"


Rule = Callable[[Evidence], Iterator[Finding]]


def beats_constant(evidence: Evidence) -> Iterator[Finding]:
    """On every modality and axis the candidate's MSE is below that of the best constant prediction."""
    for modality in MODALITIES:
        for axis in AXES:
            mse = mse_of(evidence.candidate.evaluation, modality, axis)
            floor = _number(evidence.candidate.evaluation, "floors", modality, axis)
            passed = mse is not None and floor is not None and mse < floor
            yield Finding("below-constant", f"{modality}/{axis}", mse, floor, passed)


def same_rows(evidence: Evidence) -> Iterator[Finding]:
    """Two evaluations compare only on the same rows."""
    if evidence.champion is not None:
        mine, theirs = evidence.candidate.rows, evidence.champion.rows
        yield Finding("same-rows", "dataset", mine or None, theirs or None, bool(mine) and mine == theirs)


def not_worse(evidence: Evidence) -> Iterator[Finding]:
    """Per modality, the candidate's mean MSE is at most the champion's plus the margin."""
    if evidence.champion is None:
        return
    for modality in MODALITIES:
        mine = mean_mse(evidence.candidate.evaluation, modality)
        theirs = mean_mse(evidence.champion.evaluation, modality)
        limit = None if theirs is None else theirs * (1 + evidence.policy.margin)
        passed = mine is not None and limit is not None and mine <= limit
        yield Finding("not-worse", modality, mine, limit, passed)


RULES: Final[tuple[Rule, ...]] = (beats_constant, same_rows, not_worse)


def judge(evidence: Evidence, rules: Sequence[Rule] = RULES) -> list[Finding]:
    """All findings of all rules, in order; the candidate passes when there are findings and each of them passed."""
    return [finding for rule in rules for finding in rule(evidence)]


@dataclass(frozen=True)
class Verdict:
    """What was decided, by which findings, about which versions, by whom, when and why."""

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

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers in it are finite, missing ones are None."""
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings]}

    def to_text(self) -> str:
        """What was decided and by which numbers, for a person."""
        marks = {True: "ok", False: "NO"}
        against = "no champion yet" if self.champion is None else f"champion was version {self.champion}"
        outcome = "done" if self.passed else "refused"
        lines = [f"{self.action} version {self.candidate} ({against}): {outcome}"]
        lines += [f"  {marks[finding.passed]}  {finding}" for finding in self.findings]
        return "\n".join([*lines, f"by {self.who} at {self.when}: {self.why}"])

    @property
    def failures(self) -> list[Finding]:
        """The findings that said no."""
        return [finding for finding in self.findings if not finding.passed]


def mse_of(evaluation: Mapping[str, Any], modality: str, axis: str) -> float | None:
    """Test MSE of a modality's axis as the evaluation recorded it; None if it is missing or not finite."""
    return _number(evaluation, "metrics", modality, axis, "mse", "value")


def mean_mse(evaluation: Mapping[str, Any], modality: str) -> float | None:
    """Mean of the axes' test MSE; None if either is missing."""
    per_axis = [mse_of(evaluation, modality, axis) for axis in AXES]
    known = [value for value in per_axis if value is not None]
    return sum(known) / len(AXES) if len(known) == len(AXES) else None


def _number(tree: Any, *path: str) -> float | None:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    is_number = isinstance(tree, int | float) and not isinstance(tree, bool) and math.isfinite(tree)
    return float(tree) if is_number else None


def _text(value: float | str | None) -> str:
    if value is None:
        return "missing"
    return value if isinstance(value, str) else f"{value:.4f}"

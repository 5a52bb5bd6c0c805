"""A recorded verdict as one HTML file, without network and scripts; all text is escaped.

A pure function of the record, so that a process that applies an interrupted record writes the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from mmva_platform.pages import page_environment
from mmva_platform.tracking.gate.verdict import Finding

WIDTH: Final = 420.0
_TITLES: Final = {
    "non-inferior": (
        "Is it worse than the champion by no more than the margin?",
        """The dot is the change of the mean squared error against the champion's on the same rows, in per cent of the
        champion's, with its 90 % interval from a paired bootstrap by song or image. The right end is the one-sided 95 %
        bound and must be left of the dashed line, the margin. Left of zero the candidate is better.""",
    ),
    "best-so-far": (
        "And than the best champion so far?",
        "The same against the best champion that passed the gate on this exam, if that is another version.",
    ),
    "slice": (
        "And on each part of the rows?",
        "The same on the mean of both axes, for each source, mood quadrant, and third of loudness or brightness.",
    ),
}


def verdict_page(record: Mapping[str, Any]) -> str:
    """The page of a verdict, given as JSON, with or without the fields that the audit log adds."""
    findings = [Finding(**finding) for finding in record["findings"]]
    template = page_environment("mmva_platform.tracking").get_template("verdict.html.j2")
    return template.render(
        record=record,
        findings=findings,
        failures=[finding for finding in findings if not finding.passed],
        plots=[plot for rule in _TITLES if (plot := _plot(rule, findings)) is not None],
        coverage=_bars("coverage", findings),
        retrieval=_bars("retrieval", findings),
        width=WIDTH,
        policy=yaml.safe_dump(record["policy"], sort_keys=False) if record["policy"] else "",
    )


def _plot(rule: str, findings: Sequence[Finding]) -> dict[str, Any] | None:
    """The rule's findings as intervals on one scale of WIDTH units; None if it has no findings."""
    mine = [finding for finding in findings if finding.rule == rule]
    drawn = [(each, shares) for each in mine if (shares := _shares(each)) is not None]
    if not mine:
        return None
    low = min([-0.05, *(shares["low"] for _, shares in drawn)])
    high = max([0.05, *(max(shares["high"], shares["limit"]) for _, shares in drawn)])

    def place(share: float) -> float:
        return round((share - low) / (high - low) * WIDTH, 1)

    step = _step(high - low)
    numbers = [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    text = "{middle:+.1%} [{low:+.1%}, {high:+.1%}], at most {limit:+.1%}"
    return {
        "title": _TITLES[rule][0],
        "lead": _TITLES[rule][1],
        "rows": [
            {"label": each.subject, "passed": each.passed, "text": text.format(**shares)}
            | {name: place(share) for name, share in shares.items()}
            for each, shares in drawn
        ],
        "zero": place(0.0),
        "ticks": [(place(tick), f"{tick:+.0%}" if tick else "0") for tick in numbers],
        "left_out": [each for each in mine if _shares(each) is None],
    }


def _shares(finding: Finding) -> dict[str, float] | None:
    """The difference, its interval and its limit, as shares of the champion's MSE; None without an interval."""
    detail, limit = finding.detail, finding.limit
    if not detail or not isinstance(limit, float | int) or detail["second"] <= 0:
        return None
    values = {"low": detail["low"], "middle": detail["first"] - detail["second"], "high": detail["high"]}
    return {name: value / detail["second"] for name, value in (values | {"limit": float(limit)}).items()}


def _step(span: float) -> float:
    """A round step that gives about four ticks."""
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _bars(rule: str, findings: Sequence[Finding]) -> list[Finding]:
    """A rule's findings with a share and a limit, each from 0 to 1."""
    return [f for f in findings if f.rule == rule and isinstance(f.value, float) and isinstance(f.limit, float)]

"""A recorded verdict as one HTML file: no network, no script, all text is escaped.

A pure function of the record, so that the process that finishes an interrupted record writes the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from mmva_platform.pages import page_environment
from mmva_platform.tracking.gate.verdict import Finding

WIDTH: Final = 420.0
_TITLES: Final = {
    "non-inferior": (
        "Is it at most a margin worse than the champion?",
        """Change of the mean squared error against the champion's on the same rows, in per cent of the champion's: the
        dot, with its 90 % interval from a paired bootstrap by song or image. The right end is the one-sided 95 % bound
        and has to stay left of the dashed line, the margin. Left of zero the candidate is better.""",
    ),
    "best-so-far": (
        "And than the best champion so far?",
        "The same against the best champion that the gate passed on this exam, where that is another version.",
    ),
    "slice": (
        "And on each part of the rows?",
        "The same on the mean of both axes, for each source, mood quadrant, and third of loudness or brightness.",
    ),
}


@dataclass(frozen=True)
class Whisker:
    """A paired difference on the scale of its plot; its right end must stay left of `limit`."""

    label: str
    passed: bool
    low: float
    middle: float
    high: float
    limit: float
    text: str


@dataclass(frozen=True)
class Plot:
    """Whiskers over one scale, in units of WIDTH; `left_out` are findings without an interval."""

    title: str
    lead: str
    rows: tuple[Whisker, ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]
    left_out: tuple[Finding, ...]


def verdict_page(record: Mapping[str, Any]) -> str:
    """The page of a verdict's JSON, with or without the fields that the audit log adds."""
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


def _plot(rule: str, findings: Sequence[Finding]) -> Plot | None:
    """The rule's findings as whiskers, None if it has no findings."""
    mine = [finding for finding in findings if finding.rule == rule]
    drawn = [(each, shares) for each in mine if (shares := _shares(each)) is not None]
    if not mine:
        return None
    title, lead = _TITLES[rule]
    low = min([-0.05, *(shares[0] for _, shares in drawn)])
    high = max([0.05, *(max(shares[2:]) for _, shares in drawn)])

    def place(share: float) -> float:
        return round((share - low) / (high - low) * WIDTH, 1)

    step = _step(high - low)
    numbers = [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    ticks = tuple((place(tick), f"{tick:+.0%}" if tick else "0") for tick in numbers)
    rows = tuple(_whisker(each, shares, place) for each, shares in drawn)
    return Plot(title, lead, rows, place(0.0), ticks, tuple(each for each in mine if _shares(each) is None))


def _whisker(finding: Finding, shares: tuple[float, float, float, float], place: Callable[[float], float]) -> Whisker:
    low, middle, high, limit = shares
    text = f"{middle:+.1%} [{low:+.1%}, {high:+.1%}], at most {limit:+.1%}"
    return Whisker(finding.subject, finding.passed, place(low), place(middle), place(high), place(limit), text)


def _shares(finding: Finding) -> tuple[float, float, float, float] | None:
    """Low, middle and high of the difference and its limit, as shares of the champion's MSE."""
    detail, limit = finding.detail, finding.limit
    if not detail or not isinstance(limit, float | int) or detail["second"] <= 0:
        return None
    values = (detail["low"], detail["first"] - detail["second"], detail["high"], float(limit))
    low, middle, high, most = (value / detail["second"] for value in values)
    return low, middle, high, most


def _step(span: float) -> float:
    """A round step that gives about four ticks."""
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _bars(rule: str, findings: Sequence[Finding]) -> list[Finding]:
    """A rule's findings with a share and a limit, each from 0 to 1."""
    return [f for f in findings if f.rule == rule and isinstance(f.value, float) and isinstance(f.limit, float)]

"""The results of the checks."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One check's result."""

    check: str
    verdict: Verdict  # "warning": it works, but should be changed
    says: str
    todo: str = ""  # what to change; empty if ok


@dataclass(frozen=True)
class Report:
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def broken(self) -> list[Finding]:
        """Findings of what does not work."""
        return [finding for finding in self.findings if finding.verdict == "broken"]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values for --json."""
        return [dataclasses.asdict(finding) for finding in self.findings]

    def to_text(self) -> str:
        """A line for each check, and below it what to do."""
        width = max(len(finding.check) for finding in self.findings)
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.verdict:<7}  {finding.check:<{width}}  {finding.says}")
            if finding.todo:
                lines.append(f"{'':<7}  {'':<{width}}  -> {finding.todo}")
        return "\n".join(lines)


def ok(check: str, says: str) -> Finding:
    """A check that passed."""
    return Finding(check, "ok", says)


def warning(check: str, says: str, todo: str) -> Finding:
    """A check of something that works, but should be changed."""
    return Finding(check, "warning", says, todo)


def broken(check: str, says: str, todo: str) -> Finding:
    """A check that failed."""
    return Finding(check, "broken", says, todo)

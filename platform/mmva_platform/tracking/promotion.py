"""Moving aliases: judged, recorded, and only then done. Rolling back needs no gate, but is recorded the same way."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime

from mmva.errors import CheckFailed, UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking.contest import gather
from mmva_platform.tracking.evidence import Finding
from mmva_platform.tracking.gate import GateRefused, Verdict, judge
from mmva_platform.tracking.moves import reconcile, settle
from mmva_platform.tracking.policy import GatePolicy
from mmva_platform.tracking.store import open_client, quiet
from mmva_platform.tracking.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    RegisteredVersion,
    aliases_of,
    find_version,
)


def promote(
    version: int | str,
    settings: Settings,
    reason: str = "",
    policy: GatePolicy | None = None,
    *,
    force: bool = False,
) -> Verdict:
    """Make a version the champion, if the gate lets it: the old champion becomes `previous`.

    The verdict, passed or not, is in the audit log before any alias moves.

    Args:
        version: Number or alias of a registered version.
        settings: Where MLflow and the audit log are.
        reason: Why; stands in the record.
        policy: What the gate tolerates.
        force: Do it whatever the gate says; needs a reason, and stands in the version's tags for ever.

    Raises:
        UsageError: If there is no such version, it is the champion already, or force comes without a reason.
        GateRefused: If the gate says no, or another promotion came first; one line with the rules that failed.
    """
    if force and not reason.strip():
        raise UsageError("--force overrules the gate and stays on record for ever: say why with --reason TEXT")
    policy = policy or GatePolicy()
    reconcile(settings)
    client = open_client(settings)
    with quiet():
        name = settings.tracking.model_name
        candidate = find_version(client, name, version)
        if CHAMPION in candidate.aliases:
            raise UsageError(f"version {candidate.version} of {name!r} is the champion already")
        holder = aliases_of(client, name).get(CHAMPION)
        champion = find_version(client, name, holder) if holder is not None else None
        findings = judge(gather(client, settings, candidate, champion, policy))
        judged = _verdict("promote", candidate, holder, reason, findings, force=force, policy=policy)
        verdict = settle(client, settings, judged)
        if not verdict.carried_out:
            raise GateRefused(name, verdict)
    return verdict


def compare(version: int | str, other: int | str, settings: Settings, policy: GatePolicy | None = None) -> Verdict:
    """What the gate would say to a version if another were the champion; nothing is recorded, nothing moves.

    Raises:
        UsageError: If there is no such version, or both are the same.
    """
    policy = policy or GatePolicy()
    client = open_client(settings)
    with quiet():
        candidate, champion = (find_version(client, settings.tracking.model_name, each) for each in (version, other))
        if candidate.version == champion.version:
            raise UsageError(f"compare: both are version {candidate.version}; name two versions")
        findings = judge(gather(client, settings, candidate, champion, policy))
        return _verdict("compare", candidate, champion.version, "a comparison, not recorded", findings, policy=policy)


def challenge(version: int | str, settings: Settings, reason: str = "") -> Verdict:
    """Name a version `challenger`, the one that is to be compared with the champion; needs no gate, is recorded.

    Raises:
        UsageError: If there is no such version, or it is the champion.
        CheckFailed: If the champion changed meanwhile.
    """
    reconcile(settings)
    client = open_client(settings)
    with quiet():
        name = settings.tracking.model_name
        target = find_version(client, name, version)
        if CHAMPION in target.aliases or CHALLENGER in target.aliases:
            raise UsageError(f"version {target.version} of {name!r} is {' and '.join(target.aliases)} already")
        holder = aliases_of(client, name).get(CHAMPION)
        verdict = settle(client, settings, _verdict("challenge", target, holder, reason))
        if not verdict.carried_out:
            raise CheckFailed(f"version {target.version} of {name!r} was not named: {verdict.failures[0]}")
    return verdict


def rollback(settings: Settings, reason: str = "") -> Verdict:
    """Swap `champion` and `previous`, at once and without a gate: the previous champion was judged when it became one.

    Raises:
        UsageError: If there is no previous champion.
        CheckFailed: If the champion changed meanwhile.
    """
    reconcile(settings)
    client = open_client(settings)
    with quiet():
        name = settings.tracking.model_name
        aliases = aliases_of(client, name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if champion is None or previous is None or champion == previous:
            raise UsageError(f"model {name!r} has no previous champion to go back to")
        target = find_version(client, name, previous)
        verdict = settle(client, settings, _verdict("rollback", target, champion, reason))
        if not verdict.carried_out:
            raise CheckFailed(f"model {name!r} was not rolled back: {verdict.failures[0]}")
    return verdict


def _verdict(
    action: str,
    candidate: RegisteredVersion,
    champion: int | None,
    reason: str,
    findings: Sequence[Finding] | None = None,
    *,
    force: bool = False,
    policy: GatePolicy | None = None,
) -> Verdict:
    """Passed if there are findings and all of them are; without a gate (None) there is nothing to pass."""
    passed = findings is None or (bool(findings) and all(finding.passed for finding in findings))
    return Verdict(
        action=action,
        candidate=candidate.version,
        champion=champion,
        candidate_digest=candidate.model_digest,
        dataset_digest=candidate.dataset_digest,
        findings=tuple(findings or ()),
        passed=passed,
        who=_who(),
        when=datetime.now(UTC).isoformat(timespec="milliseconds"),
        why=reason.strip() or "no reason given",
        forced=force and not passed,
        policy=None if policy is None else policy.model_dump(mode="json"),
    )


def _who() -> str:
    """The name at the tracking server if there is one, else this machine's; and the machine."""
    return f"{os.environ.get('MLFLOW_TRACKING_USERNAME') or getpass.getuser()}@{platform.node()}"

"""Moving `champion`: judged, recorded, and only then done. Rolling back needs no gate, but is recorded the same way."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mmva.errors import CheckFailed, UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking import paired
from mmva_platform.tracking.evidence import Contender, Evidence, Finding
from mmva_platform.tracking.gate import Verdict, judge
from mmva_platform.tracking.moves import reconcile, settle
from mmva_platform.tracking.policy import GatePolicy
from mmva_platform.tracking.resolve import resolve_model
from mmva_platform.tracking.store import open_client, quiet
from mmva_platform.tracking.versions import (
    CHAMPION,
    PREVIOUS,
    RegisteredVersion,
    aliases_of,
    evaluation_of,
    find_version,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlflow import MlflowClient


def promote(
    version: int, settings: Settings, reason: str = "", policy: GatePolicy | None = None, *, force: bool = False
) -> Verdict:
    """Make a version the champion, if the gate lets it: the old champion becomes `previous`.

    The verdict, passed or not, is in the audit log before any alias moves.

    Args:
        version: Number of a registered version.
        settings: Where MLflow and the audit log are.
        reason: Why; stands in the record.
        policy: What the gate tolerates.
        force: Do it whatever the gate says; needs a reason, and stands in the version's tags for ever.

    Raises:
        UsageError: If there is no such version, it is the champion already, or force comes without a reason.
        CheckFailed: If the gate says no, or another promotion came first; one line with the rules that failed.
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
            raise UsageError(f"version {version} of {name!r} is the champion already")
        holder = aliases_of(client, name).get(CHAMPION)
        champion = find_version(client, name, holder) if holder is not None else None
        findings = judge(_evidence(client, settings, candidate, champion, policy))
        passed = bool(findings) and all(finding.passed for finding in findings)
        forced = force and not passed
        judged = _verdict("promote", candidate, holder, reason, findings, passed=passed, forced=forced, policy=policy)
        verdict = settle(client, settings, judged)
        if not verdict.carried_out:
            failed = "; ".join(str(finding) for finding in verdict.failures)
            raise CheckFailed(f"the gate refused version {version} of {name!r}: {failed}")
    return verdict


def rollback(settings: Settings, reason: str = "") -> Verdict:
    """Swap `champion` and `previous`, at once and without a gate: the previous champion passed one.

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
        verdict = settle(client, settings, _verdict("rollback", target, champion, reason, (), passed=True))
        if not verdict.carried_out:
            raise CheckFailed(f"model {name!r} was not rolled back: {verdict.failures[0]}")
    return verdict


def _verdict(
    action: str,
    candidate: RegisteredVersion,
    champion: int | None,
    reason: str,
    findings: Sequence[Finding],
    *,
    passed: bool,
    forced: bool = False,
    policy: GatePolicy | None = None,
) -> Verdict:
    return Verdict(
        action=action,
        candidate=candidate.version,
        champion=champion,
        candidate_digest=candidate.model_digest,
        dataset_digest=candidate.dataset_digest,
        findings=tuple(findings),
        passed=passed,
        who=getpass.getuser(),
        when=datetime.now(UTC).isoformat(timespec="milliseconds"),
        why=reason.strip() or "no reason given",
        forced=forced,
        policy=None if policy is None else policy.model_dump(mode="json"),
    )


def _evidence(
    client: MlflowClient,
    settings: Settings,
    candidate: RegisteredVersion,
    champion: RegisteredVersion | None,
    policy: GatePolicy,
) -> Evidence:
    """Against a champion: both predicted on the candidate's rows; what stands in the way becomes a finding."""
    if champion is None:
        return Evidence(_contender(client, candidate), None, policy)
    bundle_dir = resolve_model(f"models:/{candidate.name}/{candidate.version}", settings).bundle_dir
    mine, theirs = _contender(client, candidate, bundle_dir), _contender(client, champion)
    dataset, split = mine.evaluation.get("dataset"), mine.evaluation.get("split")
    if not (dataset and split):
        return Evidence(mine, theirs, policy, trouble="the candidate's evaluation names no dataset and split")
    try:
        other_dir = resolve_model(f"models:/{champion.name}/{champion.version}", settings).bundle_dir
        pairing = paired.predict_pair(bundle_dir, other_dir, str(dataset), settings, str(split))
    except (UsageError, CheckFailed) as error:
        return Evidence(mine, theirs, policy, trouble=str(error))
    return Evidence(mine, theirs, policy, pairing)


def _contender(client: MlflowClient, version: RegisteredVersion, bundle_dir: Path | None = None) -> Contender:
    return Contender(
        version.version,
        version.run_id,
        version.model_digest,
        evaluation_of(client, version),
        version.dataset_digest,
        None if bundle_dir is None else paired.facts_of(bundle_dir),
    )

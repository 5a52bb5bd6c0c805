"""Moving `champion`: judged, recorded, and only then done. Rolling back needs no gate, but is recorded the same way."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mmva.errors import CheckFailed, UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking import audit
from mmva_platform.tracking.gate import Contender, Evidence, GatePolicy, Verdict, judge
from mmva_platform.tracking.store import open_client, quiet
from mmva_platform.tracking.versions import (
    CHAMPION,
    PREVIOUS,
    TAG_VERDICT,
    RegisteredVersion,
    aliases_of,
    evaluation_of,
    find_version,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient


def promote(version: int, settings: Settings, reason: str = "", policy: GatePolicy | None = None) -> Verdict:
    """Make a version the champion, if the gate lets it: the old champion becomes `previous`.

    The verdict, passed or not, is written to the version's run and tags and to the audit log before any alias moves.

    Args:
        version: Number of a registered version.
        settings: Where MLflow and the audit log are.
        reason: Why; stands in the record.
        policy: What the gate tolerates.

    Raises:
        UsageError: If there is no such version, or it is the champion already.
        CheckFailed: If the gate says no; one line with the rules that failed and their numbers.
    """
    client = open_client(settings)
    with quiet():
        name = settings.tracking.model_name
        candidate = find_version(client, name, version)
        if CHAMPION in candidate.aliases:
            raise UsageError(f"version {version} of {name!r} is the champion already")
        holder = aliases_of(client, name).get(CHAMPION)
        champion = find_version(client, name, holder) if holder is not None else None
        against = _contender(client, champion) if champion else None
        findings = judge(Evidence(_contender(client, candidate), against, policy or GatePolicy()))
        passed = bool(findings) and all(finding.passed for finding in findings)
        verdict = Verdict(
            action="promote",
            candidate=version,
            champion=holder,
            candidate_digest=candidate.model_digest,
            dataset_digest=candidate.dataset_digest,
            findings=tuple(findings),
            passed=passed,
            who=getpass.getuser(),
            when=datetime.now(UTC).isoformat(timespec="milliseconds"),
            why=reason.strip() or "no reason given",
        )
        _record(client, settings, candidate, verdict)
        if not verdict.passed:
            failed = "; ".join(str(finding) for finding in verdict.failures)
            raise CheckFailed(f"the gate refused version {version} of {name!r}: {failed}")
        _move(client, name, champion=version, previous=holder)
    return verdict


def rollback(settings: Settings, reason: str = "") -> Verdict:
    """Swap `champion` and `previous`, at once and without a gate: the previous champion passed one.

    Raises:
        UsageError: If there is no previous champion.
    """
    client = open_client(settings)
    with quiet():
        name = settings.tracking.model_name
        aliases = aliases_of(client, name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if champion is None or previous is None or champion == previous:
            raise UsageError(f"model {name!r} has no previous champion to go back to")
        target = find_version(client, name, previous)
        verdict = Verdict(
            action="rollback",
            candidate=previous,
            champion=champion,
            candidate_digest=target.model_digest,
            dataset_digest=target.dataset_digest,
            findings=(),
            passed=True,
            who=getpass.getuser(),
            when=datetime.now(UTC).isoformat(timespec="milliseconds"),
            why=reason.strip() or "no reason given",
        )
        _record(client, settings, target, verdict)
        _move(client, name, champion=previous, previous=champion)
    return verdict


def _contender(client: MlflowClient, version: RegisteredVersion) -> Contender:
    return Contender(version.version, version.run_id, version.model_digest, evaluation_of(client, version))


def _record(client: MlflowClient, settings: Settings, version: RegisteredVersion, verdict: Verdict) -> None:
    """Artifact, tags, then the audit log, which is on disk when this returns."""
    record = verdict.to_json() | {"model": version.name}
    stamp = verdict.when.replace(":", "").replace("+0000", "Z")
    file = f"verdicts/{verdict.action}-v{version.version}-{stamp}.json"
    client.log_text(version.run_id, json.dumps(record, indent=2, sort_keys=True) + "\n", file)
    tags = {
        TAG_VERDICT: "passed" if verdict.passed else "refused",
        f"{TAG_VERDICT}_action": verdict.action,
        f"{TAG_VERDICT}_by": verdict.who,
        f"{TAG_VERDICT}_at": verdict.when,
        f"{TAG_VERDICT}_reason": verdict.why,
        f"{TAG_VERDICT}_file": file,
    }
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, value)
    audit.append(settings.home.resolve(), record)


def _move(client: MlflowClient, name: str, *, champion: int, previous: int | None) -> None:
    """`previous` first: a crash in between leaves the old champion in place, and promoting again repairs it."""
    if previous is not None:
        client.set_registered_model_alias(name, PREVIOUS, str(previous))
    client.set_registered_model_alias(name, CHAMPION, str(champion))

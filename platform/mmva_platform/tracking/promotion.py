"""Moving aliases: judge, record, apply. A rollback needs no gate, but is recorded the same way.

Everything after the audit log (artifacts, tags, aliases) is a function of the record, so that the next command can
apply the rest after a crash. A record is appended only after the last one was applied, and each number exists once.
"""

from __future__ import annotations

import dataclasses
import getpass
import logging
import os
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mmva.errors import CheckFailed, UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking.audit import (
    ALIASES,
    TAG_SETTLED,
    AuditLog,
    Record,
    artifact_of,
    is_settled,
    tags_of,
    to_bytes,
)
from mmva_platform.tracking.gate.evidence import Evidence, gather
from mmva_platform.tracking.gate.page import verdict_page
from mmva_platform.tracking.gate.policy import GatePolicy
from mmva_platform.tracking.gate.rules import judge
from mmva_platform.tracking.gate.verdict import Finding, GateRefused, Verdict
from mmva_platform.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, RegisteredVersion, aliases_of, find_version
from mmva_platform.tracking.store import connected, retry_while_busy

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
Aliases = dict[str, int | None]


def promote(
    version: int | str, settings: Settings, reason: str = "", policy: GatePolicy | None = None, *, force: bool = False
) -> Verdict:
    """Make a version (number or alias) the champion if it passes the gate; the old champion becomes `previous`.

    The verdict, passed or not, is in the audit log before any alias moves. `force` ignores the gate, needs a reason and
    stays in the version's tags. Raises UsageError if there is no such version or it is the champion already,
    GateRefused with the failed rules if the gate refuses or another promotion came first.
    """
    if force and not reason.strip():
        raise UsageError("--force ignores the gate and stays on record: say why with --reason TEXT")
    reconcile(settings)
    with connected(settings) as client:
        name = settings.tracking.model_name
        candidate = find_version(client, name, version)
        if CHAMPION in candidate.aliases:
            raise UsageError(f"version {candidate.version} of {name!r} is the champion already")
        holder = aliases_of(client, name).get(CHAMPION)
        champion = find_version(client, name, holder) if holder is not None else None
        evidence = gather(client, settings, candidate, champion, policy or GatePolicy())
        verdict = settle(client, settings, _judged("promote", candidate, evidence, reason, force=force))
        if not verdict.carried_out:
            raise GateRefused(name, verdict)
    return verdict


def compare(version: int | str, other: int | str, settings: Settings, policy: GatePolicy | None = None) -> Verdict:
    """The gate's verdict on a version as if the other were the champion; records and changes nothing.

    Raises UsageError if there is no such version, or both are the same.
    """
    with connected(settings) as client:
        candidate, champion = (find_version(client, settings.tracking.model_name, each) for each in (version, other))
        if candidate.version == champion.version:
            raise UsageError(f"compare: both are version {candidate.version}; name two versions")
        evidence = gather(client, settings, candidate, champion, policy or GatePolicy())
        return _judged("compare", candidate, evidence, "a comparison, not recorded")


def challenge(version: int | str, settings: Settings, reason: str = "") -> Verdict:
    """Set the alias `challenger`, the version to compare with the champion; recorded, without a gate.

    Raises UsageError if there is no such version or it is the champion, CheckFailed if the champion changed meanwhile.
    """
    reconcile(settings)
    with connected(settings) as client:
        name = settings.tracking.model_name
        target = find_version(client, name, version)
        if CHAMPION in target.aliases or CHALLENGER in target.aliases:
            raise UsageError(f"version {target.version} of {name!r} is {' and '.join(target.aliases)} already")
        holder = aliases_of(client, name).get(CHAMPION)
        return _move(client, settings, _verdict("challenge", target, holder, reason))


def rollback(settings: Settings, reason: str = "") -> Verdict:
    """Swap `champion` and `previous` without a gate: the previous champion was judged when it was promoted.

    Raises UsageError if there is no previous champion, and CheckFailed if the champion changed meanwhile.
    """
    reconcile(settings)
    with connected(settings) as client:
        name = settings.tracking.model_name
        aliases = aliases_of(client, name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if champion is None or previous is None or champion == previous:
            raise UsageError(f"model {name!r} has no previous champion to go back to")
        target = find_version(client, name, previous)
        return _move(client, settings, _verdict("rollback", target, champion, reason))


def _move(client: MlflowClient, settings: Settings, verdict: Verdict) -> Verdict:
    settled = settle(client, settings, verdict)
    if not settled.carried_out:
        raise CheckFailed(f"{verdict.action} of {settings.tracking.model_name!r} was not done: {settled.failures[0]}")
    return settled


def _judged(
    action: str, candidate: RegisteredVersion, evidence: Evidence, reason: str, *, force: bool = False
) -> Verdict:
    """The verdict on the evidence: passed if there are findings and all passed."""
    findings = tuple(judge(evidence))
    passed = bool(findings) and all(finding.passed for finding in findings)
    return dataclasses.replace(
        _verdict(action, candidate, evidence.champion, reason),
        findings=findings,
        passed=passed,
        forced=force and not passed,
        policy=evidence.policy.model_dump(mode="json"),
        exam=None if evidence.exam is None else evidence.exam.model_dump(mode="json"),
        figures=evidence.figures(),
    )


def _verdict(action: str, candidate: RegisteredVersion, champion: int | None, reason: str) -> Verdict:
    """A passed verdict without a gate, by the user of the tracking server if set, else of this machine."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    return Verdict(
        action=action,
        candidate=candidate.version,
        champion=champion,
        candidate_digest=candidate.model_digest,
        dataset_digest=candidate.dataset_digest,
        findings=(),
        passed=True,
        who=f"{user}@{platform.node()}",
        when=datetime.now(UTC).isoformat(timespec="milliseconds"),
        why=reason.strip() or "no reason given",
    )


def settle(client: MlflowClient, settings: Settings, verdict: Verdict) -> Verdict:
    """Record a verdict and apply it, unless the champion has changed since it was judged.

    Returns the verdict as recorded: refused, with a finding, if another promotion came first.
    """
    log, name = AuditLog.of(settings), settings.tracking.model_name
    while True:
        records = _catch_up(client, log, name)
        found = aliases_of(client, name)
        before: Aliases = {alias: found.get(alias) for alias in ALIASES}
        settled = verdict
        if before[CHAMPION] != verdict.champion:
            now, then = (f"version {each}" if each else "none" for each in (before[CHAMPION], verdict.champion))
            changed = Finding("champion-unchanged", "alias", now, then, passed=False, note="run the command again")
            settled = dataclasses.replace(verdict, findings=(*verdict.findings, changed), passed=False, forced=False)
        after = moved(settled, before) if settled.carried_out else before
        record = settled.to_json() | {"model": name, "before": before, "after": after}
        if log.append(record, records) is not None:
            _catch_up(client, log, name)
            return settled


def moved(verdict: Verdict, before: Aliases) -> Aliases:
    """Aliases after a verdict: previous <- champion <- candidate, or only the challenger."""
    if verdict.action == "challenge":
        return before | {CHALLENGER: verdict.candidate}
    after = before | {CHAMPION: verdict.candidate}
    if verdict.champion is not None:
        after[PREVIOUS] = verdict.champion
    if before[CHALLENGER] == verdict.candidate:
        after[CHALLENGER] = None
    return after


def reconcile(settings: Settings) -> None:
    """Apply the rest of the last record if its command died. Does not open MLflow if there are no records."""
    log = AuditLog.of(settings)
    if log.read():
        with connected(settings) as client:
            _catch_up(client, log, settings.tracking.model_name)


def _catch_up(client: MlflowClient, log: AuditLog, name: str) -> list[Record]:
    """Apply the last record if necessary, and again while newer ones appear; returns the records.

    Only the last record can be incomplete, because every command starts with this. A slow writer that applied an older
    record over a newer one finds the newer one here and applies it again.
    """
    applied = 0
    while True:
        records = log.read()
        if not records or records[-1]["number"] == applied:
            return records
        last = records[-1]
        try:
            find_version(client, name, int(last["candidate"]))
        except UsageError:
            logger.warning("the audit log's last record is about version %s, which was deleted", last["candidate"])
            return records
        if not applied and is_settled(client, last):
            return records
        _apply(client, last)
        applied = int(last["number"])


def _apply(client: MlflowClient, record: Record) -> None:
    """Write artifacts, tags, aliases, and last the tag that all is applied. Repeating it changes nothing."""
    name, version = str(record["model"]), str(record["candidate"])
    file = artifact_of(record)
    run_id = find_version(client, name, int(version)).run_id
    retry_while_busy(client.log_text, run_id, to_bytes(record).decode(), file)
    retry_while_busy(client.log_text, run_id, verdict_page(record), file.replace(".json", ".html"))
    for key, value in tags_of(record).items():
        retry_while_busy(client.set_model_version_tag, name, version, key, value)
    for alias in ALIASES:
        target = record["after"][alias]
        if target == record["before"][alias]:
            continue
        if target is not None:
            retry_while_busy(client.set_registered_model_alias, name, alias, str(target))
        elif alias in aliases_of(client, name):
            retry_while_busy(client.delete_registered_model_alias, name, alias)
    retry_while_busy(client.set_model_version_tag, name, version, TAG_SETTLED, str(record["number"]))

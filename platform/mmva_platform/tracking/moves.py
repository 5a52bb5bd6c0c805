"""From a verdict to moved aliases: the audit log first, then what follows from its record, which can be done again.

Everything after the log (artifacts, tags, aliases) is a function of the record, so that whoever comes next finishes
what a crash left undone. Nobody appends before the last record is applied, and the log gives each number once.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mmva.errors import UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking.audit import AuditLog, Record, digest, to_bytes
from mmva_platform.tracking.evidence import Finding
from mmva_platform.tracking.gate import Verdict
from mmva_platform.tracking.patience import patiently
from mmva_platform.tracking.store import open_client, quiet
from mmva_platform.tracking.verdict_page import verdict_page
from mmva_platform.tracking.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    TAG_FORCED,
    TAG_VERDICT,
    aliases_of,
    find_version,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)
Aliases = dict[str, int | None]
ALIASES: Final = (PREVIOUS, CHAMPION, CHALLENGER)
TAG_SETTLED: Final = f"{TAG_VERDICT}_settled"


def settle(client: MlflowClient, settings: Settings, verdict: Verdict) -> Verdict:
    """Record a verdict and do what it says, unless the champion is no longer the one it was judged against.

    Returns:
        The verdict as recorded: refused, with a finding, when another promotion came first.
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
    """Aliases when a verdict has been carried out: previous <- champion <- challenger, or what its action says."""
    if verdict.action == "challenge":
        return before | {CHALLENGER: verdict.candidate}
    after = before | {CHAMPION: verdict.candidate}
    if verdict.champion is not None:
        after[PREVIOUS] = verdict.champion
    if before[CHALLENGER] == verdict.candidate:
        after[CHALLENGER] = None
    return after


def reconcile(settings: Settings) -> None:
    """Finish what the last recorded command left undone when it died; nothing is opened where nothing was recorded."""
    log = AuditLog.of(settings)
    if log.read():
        client = open_client(settings)
        with quiet():
            _catch_up(client, log, settings.tracking.model_name)


def is_settled(client: MlflowClient, record: Mapping[str, Any]) -> bool:
    """Whether all of a record was done: its version says so, last of all."""
    tags = client.get_model_version(str(record["model"]), str(record["candidate"])).tags
    return str(tags.get(TAG_SETTLED)) == str(record["number"])


def _catch_up(client: MlflowClient, log: AuditLog, name: str) -> list[Record]:
    """Apply the last record if it was not, until none came after the one that was applied; the records.

    Only the last one can be unfinished, for every command begins here. A writer that fell asleep over an older record
    and overwrote a newer one's aliases finds the newer one here, and applies it again.
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
            logger.warning("the audit log's last record is about version %s, which is gone", last["candidate"])
            return records
        if not applied and is_settled(client, last):
            return records
        _apply(client, last)
        applied = int(last["number"])


def _apply(client: MlflowClient, record: Record) -> None:
    """Artifacts, tags, aliases, and last the mark that all of it is done. Doing it again changes nothing."""
    name, version = str(record["model"]), str(record["candidate"])
    file = artifact_of(record)
    run_id = find_version(client, name, int(version)).run_id
    patiently(partial(client.log_text, run_id, to_bytes(record).decode(), file))
    patiently(partial(client.log_text, run_id, verdict_page(record), file.replace(".json", ".html")))
    for key, value in tags_of(record).items():
        patiently(partial(client.set_model_version_tag, name, version, key, value))
    for alias in ALIASES:
        target = record["after"][alias]
        if target == record["before"][alias]:
            continue
        if target is not None:
            patiently(partial(client.set_registered_model_alias, name, alias, str(target)))
        elif alias in aliases_of(client, name):
            patiently(partial(client.delete_registered_model_alias, name, alias))
    patiently(partial(client.set_model_version_tag, name, version, TAG_SETTLED, str(record["number"])))


def artifact_of(record: Mapping[str, Any]) -> str:
    """Where a record stands among the artifacts of its version's run."""
    return f"verdicts/{record['number']:08d}-{record['action']}-v{record['candidate']}.json"


def tags_of(record: Record) -> dict[str, str]:
    """Tags of the version that a record is about; only the gate's own say that it passed."""
    prefix = TAG_VERDICT if record["action"] == "promote" else f"mmva.{record['action']}"
    tags = {
        prefix: str(record["outcome"]),
        f"{prefix}_by": str(record["who"]),
        f"{prefix}_at": str(record["when"]),
        f"{prefix}_reason": str(record["why"]),
        f"{prefix}_file": artifact_of(record),
        f"{prefix}_sha256": digest(record),
    }
    if record["forced"]:
        tags[TAG_FORCED] = f"{record['who']} at {record['when']}: {record['why']}"
    return tags

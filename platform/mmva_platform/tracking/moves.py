"""From a verdict to moved aliases: the audit log first, then what follows from its record, which can be done again.

Everything after the log (artifact, tags, aliases) is a function of the record, so that whoever comes next finishes
what a crash left undone. One at a time on a home: the lock spans reading the champion, the record and the move.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mmva.errors import UsageError
from mmva_platform.settings import Settings
from mmva_platform.tracking import audit
from mmva_platform.tracking.evidence import Finding
from mmva_platform.tracking.gate import Verdict
from mmva_platform.tracking.store import open_client, quiet
from mmva_platform.tracking.versions import (
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
Result = TypeVar("Result")
TAG_SETTLED: Final = f"{TAG_VERDICT}_settled"
_TRIES, _FIRST_WAIT_S = 7, 0.1


def settle(client: MlflowClient, settings: Settings, verdict: Verdict) -> Verdict:
    """Record a verdict and do what it says, unless the champion is no longer the one it was judged against.

    Returns:
        The verdict as recorded: refused, with a finding, when another promotion came first.
    """
    home, name = settings.home.resolve(), settings.tracking.model_name
    with audit.locked(home):
        finish(client, settings)
        holder = aliases_of(client, name).get(CHAMPION)
        if holder != verdict.champion:
            now, then = (f"version {each}" if each else "none" for each in (holder, verdict.champion))
            changed = Finding("champion-unchanged", "alias", now, then, passed=False, note="run the command again")
            verdict = dataclasses.replace(verdict, findings=(*verdict.findings, changed), passed=False, forced=False)
        record = verdict.to_json() | {"model": name}
        audit.append(home, record)
        patiently(lambda: _apply(client, record))
    return verdict


def reconcile(settings: Settings) -> None:
    """Finish what the last recorded command left undone when it died; nothing is opened where nothing was recorded."""
    home = settings.home.resolve()
    if audit.read(home):
        client = open_client(settings)
        with quiet(), audit.locked(home):
            finish(client, settings)


def finish(client: MlflowClient, settings: Settings) -> None:
    """Apply the model's last record if it was not; the caller holds the lock.

    Only the last one can be unfinished, for every command begins here. Records of before there was a mark are left.
    """
    name = settings.tracking.model_name
    records = [record for record in audit.read(settings.home.resolve()) if record.get("model") == name]
    if not records or "forced" not in records[-1]:
        return
    last = records[-1]
    try:
        find_version(client, name, int(last["candidate"]))
    except UsageError:
        logger.warning("the audit log's last record is about version %s, which is gone", last["candidate"])
        return
    if client.get_model_version(name, str(last["candidate"])).tags.get(TAG_SETTLED) != last["when"]:
        logger.warning(
            "finishing what was cut off: %s version %s of %s", last["action"], last["candidate"], last["when"]
        )
        patiently(lambda: _apply(client, last))


def patiently(call: Callable[[], Result]) -> Result:
    """Call again while the database is busy, waiting longer each time (some 10 s in all)."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    for tries in range(1, _TRIES + 1):
        try:
            return call()
        except (MlflowException, OperationalError) as error:
            if "database is locked" not in str(error) or tries == _TRIES:
                raise
            time.sleep(_FIRST_WAIT_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")


def _apply(client: MlflowClient, record: Mapping[str, Any]) -> None:
    """Artifact, tags, aliases, and last the mark that all of it is done. Doing it again changes nothing."""
    name, version = str(record["model"]), int(record["candidate"])
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    stamp = str(record["when"]).replace(":", "").replace("+0000", "Z")
    file = f"verdicts/{record['action']}-v{version}-{stamp}.json"
    client.log_text(find_version(client, name, version).run_id, text, file)
    moves = record["passed"] or record["forced"]
    tags = {
        TAG_VERDICT: "passed" if record["passed"] else "forced" if record["forced"] else "refused",
        f"{TAG_VERDICT}_action": record["action"],
        f"{TAG_VERDICT}_by": record["who"],
        f"{TAG_VERDICT}_at": record["when"],
        f"{TAG_VERDICT}_reason": record["why"],
        f"{TAG_VERDICT}_file": file,
        f"{TAG_VERDICT}_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    if record["forced"]:
        tags[TAG_FORCED] = f"{record['who']} at {record['when']}: {record['why']}"
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), key, value)
    if moves:
        if record["champion"] is not None:
            client.set_registered_model_alias(name, PREVIOUS, str(record["champion"]))
        client.set_registered_model_alias(name, CHAMPION, str(version))
    client.set_model_version_tag(name, str(version), TAG_SETTLED, record["when"])

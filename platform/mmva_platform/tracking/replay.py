"""The audit log, replayed: what it says about aliases, tags and verdicts, held against what the registry has."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmva_platform.settings import Settings
from mmva_platform.tracking.audit import AuditLog, Record, digest
from mmva_platform.tracking.moves import ALIASES, artifact_of, is_settled, tags_of
from mmva_platform.tracking.store import open_client, quiet
from mmva_platform.tracking.versions import TAG_FORCED, TAG_VERDICT, aliases_of, versions_of

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the log says."""

    where: str
    recorded: str
    found: str

    def __str__(self) -> str:
        """Such as "alias champion: the log says 2, the registry has 3"."""
        return f"{self.where}: the log says {self.recorded}, the registry has {self.found}"


@dataclass(frozen=True)
class AuditReport:
    """What a replay found.

    Attributes:
        uri: Where the log lies.
        model: The registered model.
        records: All of them, oldest first.
        differences: None if log, aliases and tags agree.
    """

    uri: str
    model: str
    records: tuple[Record, ...]
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """Whether there is no difference."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"agrees": self.agrees}

    def to_text(self) -> str:
        """A line a record, then what differs."""
        lines = [f"audit log of {self.model!r} in {self.uri}: {len(self.records)} records"]
        lines += [
            f"  {record['number']}  {record['when']}  {record['who']}  "
            f"{record['action']} version {record['candidate']}: {record['outcome']}  ({record['why']})"
            for record in self.records
        ]
        lines += [f"  DIFFERS  {difference}" for difference in self.differences]
        return "\n".join([*lines, "log, aliases, tags and verdicts agree" if self.agrees else "they do not agree"])


def audit(settings: Settings) -> AuditReport:
    """Replay the log; changes nothing, not even what a crash left undone.

    Raises:
        CheckFailed: If the log itself was damaged.
    """
    log, name = AuditLog.of(settings), settings.tracking.model_name
    records = log.read()
    client = open_client(settings)
    with quiet():
        differences = (
            *_aliases(client, name, records),
            *_unfinished(client, records),
            *_versions(client, name, records),
            *_artifacts(client, name, records),
        )
    return AuditReport(log.uri, name, tuple(records), differences)


def _aliases(client: MlflowClient, name: str, records: list[Record]) -> Iterator[Difference]:
    """Aliases between two records, and now."""
    now = aliases_of(client, name)
    recorded = dict.fromkeys(ALIASES)
    for record in records:
        for alias in ALIASES:
            if record["before"][alias] != recorded[alias]:
                where = f"alias {alias} before record {record['number']}"
                yield Difference(where, str(recorded[alias] or "none"), str(record["before"][alias] or "none"))
        recorded = record["after"]
    for alias in ALIASES:
        if now.get(alias) != recorded[alias]:
            yield Difference(f"alias {alias}", str(recorded[alias] or "none"), str(now.get(alias) or "none"))


def _unfinished(client: MlflowClient, records: list[Record]) -> Iterator[Difference]:
    known = {each.version for each in versions_of(client, records[-1]["model"])} if records else set()
    if records and records[-1]["candidate"] in known and not is_settled(client, records[-1]):
        where = f"record {records[-1]['number']}"
        yield Difference(where, "it was carried out", "not all of it; the next command finishes it")


def _versions(client: MlflowClient, name: str, records: list[Record]) -> Iterator[Difference]:
    """Tags and digests of every version."""
    versions = {each.version: each for each in versions_of(client, name)}
    wanted: dict[int, dict[str, str]] = {version: {} for version in versions}
    for record in records:
        version = int(record["candidate"])
        if version not in versions:
            yield Difference(f"version {version}", f"record {record['number']} is about it", "no such version")
            continue
        wanted[version] |= tags_of(record)
        registered = versions[version].model_digest
        if record["candidate_digest"] != registered:
            where = f"version {version}'s digest in record {record['number']}"
            yield Difference(where, record["candidate_digest"][:16], registered[:16])
    for version, tags in wanted.items():
        found = client.get_model_version(name, str(version)).tags
        for key in sorted({*tags, *(key for key in (TAG_VERDICT, TAG_FORCED) if key in found)}):
            if found.get(key) != tags.get(key):
                where = f"version {version}'s tag {key}"
                yield Difference(where, repr(tags.get(key, "nothing")), repr(found.get(key, "nothing")))


def _artifacts(client: MlflowClient, name: str, records: list[Record]) -> Iterator[Difference]:
    """Verdicts beside the runs, byte by byte."""
    from mlflow.exceptions import MlflowException

    runs = {each.version: each.run_id for each in versions_of(client, name)}
    for record in records:
        if record["candidate"] in runs:
            file = artifact_of(record)
            with tempfile.TemporaryDirectory() as temporary:
                try:
                    data = Path(client.download_artifacts(runs[record["candidate"]], file, temporary)).read_bytes()
                except (MlflowException, OSError):
                    yield Difference(f"artifact {file}", digest(record)[:16], "nothing")
                    continue
            found = hashlib.sha256(data).hexdigest()
            if found != digest(record):
                yield Difference(f"artifact {file}", digest(record)[:16], found[:16])

"""The audit log (who moved which alias, when and why, in one numbered JSON object per record) and its replay.

A record is written only if its number is free: of two writers one wins, so the log needs no lock. Each record holds the
SHA-256 of the one before, so a record that was changed, removed or inserted later is noticed. Tags and artifacts of a
version are functions of its records, so a replay can compare them with the registry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mmva.errors import CheckFailed
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage
from mmva_platform.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    TAG_FORCED,
    TAG_VERDICT,
    RegisteredVersion,
    aliases_of,
    read_artifact,
    versions_of,
)
from mmva_platform.tracking.store import connected

if TYPE_CHECKING:
    from mlflow import MlflowClient

Record = dict[str, Any]
ALIASES: Final = (PREVIOUS, CHAMPION, CHALLENGER)
FOLDER: Final = "registry-audit"
TAG_SETTLED: Final = f"{TAG_VERDICT}_settled"
_NO_RECORD: Final = "0" * 64


class AuditLog:
    """The records of one registered model: <model>/00000001.json and so on, in a folder or an S3 prefix."""

    def __init__(self, storage: Storage, model: str) -> None:
        self._storage, self._model = storage, model

    @classmethod
    def of(cls, settings: Settings) -> AuditLog:
        """The log of the settings' model."""
        place = settings.tracking.audit or str(settings.home.resolve() / FOLDER)
        return cls(open_storage(place, settings.storage), settings.tracking.model_name)

    @property
    def uri(self) -> str:
        """Where the records are."""
        return self._storage.join(self._model)

    def read(self) -> list[Record]:
        """All records, oldest first. Raises CheckFailed, naming it, if one is missing, not JSON, or was changed."""
        records: list[Record] = []
        prior = _NO_RECORD
        for number, entry in enumerate(self._storage.list(f"{self._model}/"), start=1):
            if entry.path != self._path(number):
                raise CheckFailed(f"{self.uri}: record {number} is missing, found {entry.path}; the log was damaged")
            data, place = self._storage.read(entry.path), self._storage.join(entry.path)
            try:
                record = dict(json.loads(data))
            except (ValueError, TypeError):
                raise CheckFailed(f"{place}: is not a JSON object; the log was damaged") from None
            if (record.get("number"), record.get("prior")) != (number, prior):
                raise CheckFailed(f"{place}: does not match the record before it; one of them was changed")
            records.append(record)
            prior = hashlib.sha256(data).hexdigest()
        return records

    def append(self, record: Mapping[str, Any], after: list[Record]) -> Record | None:
        """Append a record durably after those that were read.

        Returns the record with its number and the digest of the one before, or None if another writer was first: then
        read again.
        """
        prior = digest(after[-1]) if after else _NO_RECORD
        whole = {**record, "number": len(after) + 1, "prior": prior}
        return whole if self._storage.put_if_absent(self._path(len(after) + 1), to_bytes(whole)) else None

    def _path(self, number: int) -> str:
        return f"{self._model}/{number:08d}.json"


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as stored, in the log and among the artifacts of the version's run."""
    return (json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record's bytes."""
    return hashlib.sha256(to_bytes(record)).hexdigest()


def artifact_of(record: Mapping[str, Any]) -> str:
    """Path of a record among the artifacts of its version's run."""
    return f"verdicts/{record['number']:08d}-{record['action']}-v{record['candidate']}.json"


def tags_of(record: Record) -> dict[str, str]:
    """Tags of a record's version. Only a promotion sets the tag of the gate's verdict."""
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


def is_settled(client: MlflowClient, record: Mapping[str, Any]) -> bool:
    """Whether a record was completely applied; the last step tags its version."""
    tags = client.get_model_version(str(record["model"]), str(record["candidate"])).tags
    return str(tags.get(TAG_SETTLED)) == str(record["number"])


class Difference(NamedTuple):
    """One difference between the log and the registry."""

    where: str
    recorded: str
    found: str

    def __str__(self) -> str:
        """For example "alias champion: the log says 2, the registry has 3"."""
        return f"{self.where}: the log says {self.recorded}, the registry has {self.found}"


@dataclass(frozen=True)
class AuditReport:
    """The result of replaying the log."""

    uri: str  # of the log
    model: str  # the registered model
    records: tuple[Record, ...]  # oldest first
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """Whether log and registry agree."""
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = asdict(self) | {"differences": [each._asdict() for each in self.differences]}
        return plain | {"agrees": self.agrees}

    def to_text(self) -> str:
        """One line per record, then the differences."""
        lines = [f"audit log of {self.model!r} in {self.uri}: {len(self.records)} records"]
        line = "  {number}  {when}  {who}  {action} version {candidate}: {outcome}  ({why})"
        lines += [line.format_map(record) for record in self.records]
        lines += [f"  DIFFERS  {difference}" for difference in self.differences]
        return "\n".join([*lines, "log, aliases, tags and verdicts agree" if self.agrees else "they do not agree"])


def audit(settings: Settings) -> AuditReport:
    """Replay the log; changes nothing, even after a crash. Raises CheckFailed if the log is damaged."""
    log, name = AuditLog.of(settings), settings.tracking.model_name
    records = log.read()
    with connected(settings) as client:
        versions = {each.version: each for each in versions_of(client, name)}
        differences = [*_aliases(client, name, records), *_versions(client, versions, records)]
        differences += _artifacts(client, versions, records)
    return AuditReport(log.uri, name, tuple(records), tuple(differences))


def _aliases(client: MlflowClient, name: str, records: list[Record]) -> Iterator[Difference]:
    """Differences of aliases between two records, and between the last record and the registry."""
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


def _versions(
    client: MlflowClient, versions: Mapping[int, RegisteredVersion], records: list[Record]
) -> Iterator[Difference]:
    """Differences of every version's tags and digest, and an incomplete last record."""
    wanted: dict[int, dict[str, str]] = {version: {} for version in versions}
    for record in records:
        version = int(record["candidate"])
        where = f"record {record['number']}"
        if version not in versions:
            yield Difference(f"version {version}", f"{where} is about it", "no such version")
            continue
        wanted[version] |= tags_of(record)
        registered = versions[version].model_digest
        if record["candidate_digest"] != registered:
            yield Difference(f"version {version}'s digest in {where}", record["candidate_digest"][:16], registered[:16])
        if record is records[-1] and not is_settled(client, record):
            yield Difference(where, "it was applied", "only a part of it; the next command applies the rest")
    for version, tags in wanted.items():
        found = client.get_model_version(versions[version].name, str(version)).tags
        for key in sorted({*tags, *(key for key in (TAG_VERDICT, TAG_FORCED) if key in found)}):
            if found.get(key) != tags.get(key):
                where = f"version {version}'s tag {key}"
                yield Difference(where, repr(tags.get(key, "nothing")), repr(found.get(key, "nothing")))


def _artifacts(
    client: MlflowClient, versions: Mapping[int, RegisteredVersion], records: list[Record]
) -> Iterator[Difference]:
    """Artifacts that differ from their record in any byte."""
    from mlflow.exceptions import MlflowException

    for record in records:
        if record["candidate"] in versions:
            file, run_id = artifact_of(record), versions[record["candidate"]].run_id
            try:
                data = read_artifact(client, run_id, file)
            except MlflowException:  # the run was deleted
                data = b""
            found = hashlib.sha256(data).hexdigest() if data else "nothing"
            if found != digest(record):
                yield Difference(f"artifact {file}", digest(record)[:16], found[:16])

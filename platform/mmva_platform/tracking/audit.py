"""The append-only log of who moved which alias, when and why: one JSON object a record, numbered, each put if absent.

Of two writers that reach for the same number one wins, on one machine or on two, so the log needs no lock. Each record
holds the SHA-256 of the one before: a record that was changed, taken out or put in between later is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from mmva.errors import CheckFailed
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

Record = dict[str, Any]
FOLDER: Final = "registry-audit"
_NO_RECORD: Final = "0" * 64


class AuditLog:
    """The records of one registered model, <model>/00000001.json and so on in a folder or an S3 prefix."""

    def __init__(self, storage: Storage, model: str) -> None:
        self._storage, self._model = storage, model

    @classmethod
    def of(cls, settings: Settings) -> AuditLog:
        """The settings' log of the settings' model."""
        place = settings.tracking.audit or str(settings.home.resolve() / FOLDER)
        return cls(open_storage(place, settings.storage), settings.tracking.model_name)

    @property
    def uri(self) -> str:
        """Where the records lie."""
        return self._storage.join(self._model)

    def read(self) -> list[Record]:
        """All records, oldest first; none if nothing was ever recorded.

        Raises:
            CheckFailed: If a record is missing, not JSON, or not followed by one that knows its digest; names it.
        """
        records: list[Record] = []
        prior = _NO_RECORD
        for number, entry in enumerate(self._storage.list(f"{self._model}/"), start=1):
            if entry.path != self._path(number):
                raise CheckFailed(f"{self.uri}: record {number} is missing, there is {entry.path}; the log was damaged")
            data, place = self._storage.read(entry.path), self._storage.join(entry.path)
            try:
                record = dict(json.loads(data))
            except (ValueError, TypeError):
                raise CheckFailed(
                    f"{self._storage.join(entry.path)}: is not a JSON object; the log was damaged"
                ) from None
            if (record.get("number"), record.get("prior")) != (number, prior):
                raise CheckFailed(f"{place}: does not follow from the record before; one of them was changed")
            records.append(record)
            prior = hashlib.sha256(data).hexdigest()
        return records

    def append(self, record: Mapping[str, Any], after: list[Record]) -> Record | None:
        """Append a record behind those that were read; on disk, or in the store, when this returns.

        Returns:
            The record with its number and the digest of the one before; None if somebody else was first: read again.
        """
        prior = digest(after[-1]) if after else _NO_RECORD
        whole = {**record, "number": len(after) + 1, "prior": prior}
        return whole if self._storage.put_if_absent(self._path(len(after) + 1), to_bytes(whole)) else None

    def _path(self, number: int) -> str:
        return f"{self._model}/{number:08d}.json"


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as it is stored, here and beside the version's run."""
    return (json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record's bytes."""
    return hashlib.sha256(to_bytes(record)).hexdigest()

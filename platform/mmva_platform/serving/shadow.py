"""What a challenger would have answered: differences to the champion's rows, and the record of them.

`<home>/serving/shadow/<champion>-<challenger>/<time>-<uuid>.jsonl`, one line an item, names and digests, no media.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mmva.modalities import AXES
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.serving.services import Row
from mmva_platform.storage import Storage


def differences(champion: Sequence[Row], challenger: Sequence[Row]) -> list[dict[str, Any]]:
    """Challenger minus champion for every item; None where one of them gave no point."""
    found = []
    for old, new in zip(champion, challenger, strict=True):
        both = old["status"] == new["status"] == "ok"
        row: dict[str, Any] = {
            "modality": old.get("modality") or "",
            "sha256": old.get("sha256") or new.get("sha256"),
            "champion_version": old["model_version"],
            "challenger_version": new["model_version"],
            "champion_status": old["status"],
            "challenger_status": new["status"],
        }
        for axis in AXES:
            row[f"{axis}_difference"] = new[axis] - old[axis] if both else None
        found.append(row)
    return found


def record(storage: Storage, rows: Sequence[dict[str, Any]], champion_digest: str, challenger: ModelInfo) -> str:
    """Write differences as one file that is new; its path."""
    now = datetime.now(UTC)
    folder = f"{champion_digest[:12]}-{challenger.digest[:12]}"
    path = f"{folder}/{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.jsonl"
    lines = [json.dumps({"at": now.isoformat(), **row}) for row in rows]
    storage.write(path, ("\n".join(lines) + "\n").encode())
    return path

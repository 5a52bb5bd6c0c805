"""Items through what a replica of the service does with them, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmva.models.bundle import read_bundle_info
from mmva_platform.serving.model import ServedModel
from mmva_platform.serving.prepare import Preparing
from mmva_platform.settings import Settings
from mmva_platform.tracking.resolve import ResolvedModel


def served_rows(bundle: Path, settings: Settings, requests: Sequence[Any]) -> list[dict[str, Any]]:
    """A row for every request, in order."""
    digest = read_bundle_info(bundle).digest
    model = ServedModel(ResolvedModel(bundle, "mmva", None, digest, "file"), settings)

    async def rows() -> list[dict[str, Any]]:
        preparing, found = Preparing(settings), []
        for request in requests:
            async with preparing(model.spec, request) as prepared:
                found.append(model.row_of_long(prepared) if prepared.long else model.rows([prepared])[0])
        preparing.close()
        return found

    return asyncio.run(rows())

"""A replica with the model: prepares items in parallel, and embeds them in batches across requests."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from ray import serve

from mmva.errors import OperationFailed
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.serving.context import Answers, ItemRequest, Row
from mmva_platform.serving.model import ModelHost, ServedModel
from mmva_platform.serving.prepare import Prepared, Preparing
from mmva_platform.settings import Settings

_NICE: Final = 5  # the API takes precedence when inference uses all cores


class ModelReplica:
    """One thread embeds batches of short items, another one long items; child processes decode."""

    def __init__(self, settings: Settings) -> None:
        os.nice(_NICE)
        self._host = ModelHost(settings)
        self._host.follow()
        self._settings = settings
        self._prepare = Preparing(settings)
        self._short = ThreadPoolExecutor(1, thread_name_prefix="mmva-infer")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="mmva-infer-long")
        self._batched.set_max_batch_size(settings.serving.batch_size)

    async def current(self) -> ModelInfo | None:
        """The current model."""
        return self._host.model.info if self._host.model else None

    async def versions(self) -> list[dict[str, Any]]:
        """The registered versions; none if the model is not from the registry."""
        from mmva_platform.tracking.registry import list_versions

        if not self._settings.serving.model.startswith("models:"):
            return []
        found = await asyncio.to_thread(list_versions, self._settings)
        return [version.to_json() for version in found]

    async def annotate(self, items: list[ItemRequest]) -> Answers:
        """Rows of items, all by the model that is current when the call starts."""
        model = self._host.model
        if model is None:
            raise OperationFailed("there is no model yet")
        return Answers(model.info, await asyncio.gather(*(self._row(model, item) for item in items)))

    async def _row(self, model: ServedModel, item: ItemRequest) -> Row:
        async with self._prepare(model.spec, item) as prepared:
            if prepared.long:
                return await asyncio.get_running_loop().run_in_executor(self._long, model.row_of_long, prepared)
            return await self._batched((model, prepared))

    # Does not wait for a full batch: items that arrive during a batch form the next one.
    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0)
    async def _batched(self, items: list[tuple[ServedModel, Prepared]]) -> list[Row]:
        rows: list[Row | None] = [None] * len(items)
        for model in {id(model): model for model, _ in items}.values():  # two during a switch
            own = [number for number, (its, _) in enumerate(items) if its is model]
            found = await asyncio.get_running_loop().run_in_executor(
                self._short, model.rows, [items[number][1] for number in own]
            )
            for number, row in zip(own, found, strict=True):
                rows[number] = row
        return [row for row in rows if row is not None]

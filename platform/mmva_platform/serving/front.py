"""The front's side of the model replicas: requests cut into pieces, deaths and delays told as 503, suspects apart."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva.modalities import AXES
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.serving.metrics import Metrics
from mmva_platform.serving.services import Answers, ApiError, ItemRequest, Row, busy
from mmva_platform.serving.suspects import Suspects
from mmva_platform.serving.trials import Annotate, Trials
from mmva_platform.settings import ServingSettings

logger = logging.getLogger(__name__)

Compare = Callable[[list[ItemRequest], list[Row]], Awaitable[list[Row]]]

_RESTART_S: Final = 5.0


class ReplicaLostError(Exception):
    """A model replica died, or cannot be reached, with this call in its hands."""


class OverloadedError(Exception):
    """The replicas' queues are full."""


class Front:
    """Models, as routes see them; see services.Models."""

    def __init__(
        self,
        annotate: Annotate,
        carefully: Annotate,
        current: Callable[[], Awaitable[ModelInfo | None]],
        versions: Callable[[], Awaitable[list[dict[str, Any]]]],
        *,
        settings: ServingSettings,
        metrics: Metrics,
        compare: Compare | None = None,
    ) -> None:
        """Bind to the replicas.

        Args:
            annotate: A batch of items through one replica.
            carefully: The same in a process that may die of them.
            current: The model of some replica.
            versions: What is registered, as some replica knows it.
            settings: Limits and the challenger's share.
            metrics: Where it is counted.
            compare: Items and the champion's rows through the challenger; its rows.
        """
        self._annotate, self._carefully = annotate, carefully
        self._current, self._versions = current, versions
        self._settings, self._metrics, self._compare = settings, metrics, compare
        self._suspects = Suspects()
        self._apart = Trials(self._judged, settings.max_in_flight)
        self._shadow: asyncio.Task[None] | None = None
        self.known: ModelInfo | None = None

    async def current(self) -> ModelInfo | None:
        """The model that answers now; None while there is none."""
        try:
            found = await asyncio.wait_for(self._current(), 5.0)
        except (TimeoutError, ReplicaLostError, OverloadedError):
            return None
        self._learn(found)
        return found

    async def versions(self) -> list[dict[str, Any]]:
        """What is registered; 503 when no replica can say."""
        try:
            return await self._versions()
        except (ReplicaLostError, OverloadedError):
            raise busy("no model process answers", _RESTART_S) from None

    async def annotate(self, items: Sequence[ItemRequest]) -> Answers:
        """A row for every item, in order; 503 when the replicas cannot be had."""
        rows: list[Row | None] = [None] * len(items)
        apart: list[int] = []
        plain: list[int] = []
        for number, item in enumerate(items):
            if self._suspects:
                rows[number] = self._suspects.verdict(item)
                if rows[number] is None and self._suspects.suspected(item):
                    apart.append(number)
                    continue
            if rows[number] is None:
                plain.append(number)
        size = self._settings.batch_size
        pieces = [plain[start : start + size] for start in range(0, len(plain), size)]
        calls = [self._call(self._annotate, [items[number] for number in piece]) for piece in pieces]
        if apart:
            calls.append(self._apart([items[number] for number in apart]))
        answers = await _all(calls)
        for piece, answer in zip([*pieces, *([apart] if apart else [])], answers, strict=True):
            for number, row in zip(piece, answer.rows, strict=True):
                rows[number] = row
        found = [row for row in rows if row is not None]
        model = answers[-1].model if answers else self.known
        if model is None:
            raise busy("the model is not loaded yet", _RESTART_S)
        self._learn(model)
        if plain and answers:
            self._maybe_shadow([items[number] for number in plain], [found[number] for number in plain])
        return Answers(model, found)

    async def _call(self, call: Annotate, items: list[ItemRequest]) -> Answers:
        try:
            return await call(items)
        except ReplicaLostError:
            self._metrics.replica_lost()
            self._suspects.suspect(items)
            raise busy("a model process ended; it is started again", _RESTART_S) from None
        except OverloadedError:
            self._metrics.shed("replicas")
            raise busy("all model processes are busy") from None
        except (OperationFailed, CheckFailed, UsageError) as error:
            logger.error("the model cannot answer: %s", error)  # noqa: TRY400 - one line, an expected failure
            raise ApiError(503, "model-unavailable", "the model cannot answer now", 30.0) from None

    async def _judged(self, items: list[ItemRequest]) -> Answers:
        answers = await self._call(self._carefully, items)
        self._suspects.judge(items, answers.rows)
        return answers

    def _learn(self, model: ModelInfo | None) -> None:
        if model is not None and model != self.known:
            self.known = model
            self._metrics.model(model)

    def _maybe_shadow(self, items: list[ItemRequest], rows: list[Row]) -> None:
        """Send a share of what was answered to the challenger, one call at a time; nobody waits for it."""
        if self._compare is None or random.random() >= self._settings.shadow_share:
            return
        if self._shadow is not None and not self._shadow.done():
            self._metrics.shadowed("dropped", len(items))
            return
        self._shadow = asyncio.create_task(self._shadowed(self._compare, items, rows))

    async def _shadowed(self, compare: Compare, items: list[ItemRequest], rows: list[Row]) -> None:
        try:
            differences = await asyncio.wait_for(compare(items, rows), self._settings.request_timeout_s)
        except (TimeoutError, ReplicaLostError, OverloadedError, OperationFailed, CheckFailed, UsageError) as error:
            logger.warning("challenger: %s", error or type(error).__name__)
            self._metrics.shadowed("failed", len(items))
            return
        self._metrics.shadowed("compared", len(differences))
        for row in differences:
            for axis in AXES:
                if row[f"{axis}_difference"] is not None:
                    self._metrics.difference(row["modality"], axis, abs(row[f"{axis}_difference"]))


async def _all(calls: Sequence[Awaitable[Answers]]) -> list[Answers]:
    """All of them ended, whatever became of each; then the first error, if there was one."""
    done = await asyncio.gather(*calls, return_exceptions=True)
    for one in done:
        if isinstance(one, BaseException):
            raise one
    return [one for one in done if not isinstance(one, BaseException)]

"""The API's handle on the model replicas; turns Serve's errors into HTTP errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from ray.exceptions import RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.monitoring.metrics import ApiMetrics
from mmva_platform.serving.context import Answers, ItemRequest
from mmva_platform.serving.errors import ApiError, busy

logger = logging.getLogger(__name__)

_LOST: Final = (RayActorError, WorkerCrashedError, DeploymentUnavailableError, RayServeException)
_EXPECTED: Final = (OperationFailed, CheckFailed, UsageError)
_ASK_S: Final = 5.0
_RESTART_S: Final = 5.0


class ModelClient:
    """The replicas that hold the model."""

    def __init__(self, model: Any, metrics: ApiMetrics) -> None:
        """Bind to the handle of a ModelReplica deployment."""
        self._model, self._metrics = model, metrics
        self._known: ModelInfo | None = None

    @property
    def known(self) -> ModelInfo | None:
        """The model that answered last; None if none answers. Calls no replica."""
        return self._known

    async def refresh(self) -> None:
        """Ask a replica for its model; called every few seconds, never by a request."""
        try:
            self._learn(await asyncio.wait_for(self._model.current.remote(), _ASK_S))
        except (TimeoutError, BackPressureError):
            pass  # busy, but not missing
        except _LOST:
            self._known = None

    async def versions(self) -> list[dict[str, Any]]:
        """The registered versions. Raises ApiError 503 if no replica answers."""
        return list(await self._call(self._model.versions))

    async def annotate(self, items: Sequence[ItemRequest]) -> Answers:
        """A row for every item, in order, by one replica. Raises ApiError 503 if none answers."""
        answers: Answers = await self._call(self._model.annotate, list(items))
        self._learn(answers.model)
        return answers

    async def _call(self, method: Any, *arguments: Any) -> Any:
        try:
            return await method.remote(*arguments)
        except BackPressureError:
            self._metrics.shed.inc(1, {"what": "replicas"})
            raise busy("all model replicas are busy") from None
        except _LOST as error:
            logger.warning("model replica: %s", type(error).__name__)
            raise busy("a model replica died and is being restarted", _RESTART_S) from None
        except _EXPECTED as error:
            logger.error("the model cannot answer: %s", error)  # noqa: TRY400 - one line, an expected failure
            raise ApiError(503, "model-unavailable", "the model is not available", 30.0) from None

    def _learn(self, model: ModelInfo | None) -> None:
        self._known = model
        if model is not None:
            self._metrics.model(model.model_dump())

"""Follows the registry: whichever version the alias means is loaded beside the one that answers, then takes its place.

A batch begins and ends with one model, so a switch loses no request; a model that cannot be loaded changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva_platform.serving.model import ServedModel
from mmva_platform.settings import Settings
from mmva_platform.tracking.resolve import ResolvedModel, resolve_model

logger = logging.getLogger(__name__)


class ModelHost:
    """Holds the model that serving.model means now."""

    def __init__(
        self,
        settings: Settings,
        *,
        resolve: Callable[[str, Settings], ResolvedModel] = resolve_model,
        load: Callable[[ResolvedModel, Settings], ServedModel] = ServedModel,
    ) -> None:
        """Load the model.

        Args:
            settings: Registry, home, serving.
            resolve: Instead of resolve_model.
            load: Instead of ServedModel.

        Raises:
            UsageError, CheckFailed, OperationFailed: If none loads, and serving.wait_for_model is false.
        """
        self._settings, self._resolve, self._load = settings, resolve, load
        self.model: ServedModel | None = None  # None only until the first one has come
        self._stop = threading.Event()
        try:
            self.look()
        except (UsageError, CheckFailed, OperationFailed) as error:
            if not settings.serving.wait_for_model:
                raise
            logger.warning("%s: waiting for it (%s)", settings.serving.model, error)

    def look(self) -> bool:
        """Ask the registry once, and switch if it names another model or version; whether it did."""
        uri = self._settings.serving.model
        resolved = self._resolve(uri, self._settings)
        now = self.model.info if self.model else None
        if now is not None and (now.digest, now.version) == (resolved.digest, resolved.version):
            return False
        self.model = self._load(resolved, self._settings)
        logger.info("%s: version %s (%s) answers now", uri, resolved.version, resolved.digest[:12])
        return True

    def follow(self) -> None:
        """Keep looking, in a thread of its own, until `stop`."""
        threading.Thread(target=self._follow, name="mmva-follow", daemon=True).start()

    def stop(self) -> None:
        """End the following."""
        self._stop.set()

    def _follow(self) -> None:
        while not self._stop.wait(self._settings.serving.follow_s):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - a registry that is away raises anything; the model stays
                logger.warning("%s: the model stays as it is (%s)", self._settings.serving.model, error)

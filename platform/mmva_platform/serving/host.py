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

_EXPECTED = (UsageError, CheckFailed, OperationFailed)


class ModelHost:
    """Holds the model that a URI means now."""

    def __init__(
        self,
        uri: str,
        settings: Settings,
        *,
        optional: bool = False,
        wait: bool = False,
        resolve: Callable[[str, Settings], ResolvedModel] = resolve_model,
        load: Callable[[ResolvedModel, Settings], ServedModel] = ServedModel,
    ) -> None:
        """Load the model.

        Args:
            uri: As resolve_model takes it.
            settings: Registry, home, serving.
            optional: There may be no such model now, or at any time; the following finds it later.
            wait: There may be no such model at first; once there is one, it stays until another can be loaded.
            resolve: Instead of resolve_model.
            load: Instead of ServedModel.

        Raises:
            UsageError, CheckFailed, OperationFailed: If there is none that loads, and it may not come later.
        """
        self._uri, self._settings, self._resolve, self._load = uri, settings, resolve, load
        self._optional = optional
        self._model: ServedModel | None = None
        self._stop = threading.Event()
        try:
            self.look()
        except _EXPECTED as error:
            if not (optional or wait):
                raise
            logger.warning("%s: waiting for it (%s)", uri, error)

    @property
    def model(self) -> ServedModel | None:
        """The model that answers; None only for one that may come later and has not."""
        return self._model

    def look(self) -> bool:
        """Ask the registry once, and switch if it names another model or version; whether it did."""
        try:
            resolved = self._resolve(self._uri, self._settings)
        except UsageError:
            if self._optional:
                self._model = None
            raise
        now = self._model.info if self._model else None
        if now is not None and (now.digest, now.version) == (resolved.digest, resolved.version):
            return False
        self._model = self._load(resolved, self._settings)
        logger.info("%s: version %s (%s) answers now", self._uri, resolved.version, resolved.digest[:12])
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
                logger.warning("%s: the model stays as it is (%s)", self._uri, error)

"""A loaded model, and the host that follows the registry."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmva.engines.calibration import made_up_items
from mmva.engines.choice import choose_engines, load_predictor, pack_bundle, sample_rate_of, unpacked
from mmva.errors import CheckFailed, MediaError, OperationFailed, UsageError
from mmva.inference.config import default_preprocessing
from mmva.inference.decoders import DecodeSpec
from mmva.inference.heads import predict
from mmva.inference.items import Item
from mmva.inference.pipeline import Pipeline
from mmva.modalities import AXES
from mmva_platform.annotation.plan.plan import ModelInfo
from mmva_platform.datasets.embedding.worker import EncoderLoader
from mmva_platform.serving.context import Row
from mmva_platform.serving.prepare import Prepared
from mmva_platform.settings import Settings, limits_of
from mmva_platform.storage import open_storage
from mmva_platform.tracking.resolve import ResolvedModel, resolve_model

logger = logging.getLogger(__name__)


class ServedModel:
    """Towers and encoders, loaded at the start so that no request waits for them; `spec` says how items are decoded."""

    def __init__(self, resolved: ResolvedModel, settings: Settings) -> None:
        """Load it. Raises UsageError, CheckFailed or OperationFailed if it cannot be loaded or was changed."""
        self.info = ModelInfo(name=resolved.name, version=resolved.version, digest=resolved.digest)
        bundle = pack_bundle(resolved.bundle_dir)
        home = settings.home.resolve()
        # Exported networks are stored under home, by the model's digest.
        out = open_storage(home / "cache" / "serving" / resolved.digest[:32], settings.storage)
        load = EncoderLoader.of(settings)
        engines = choose_engines(
            bundle, settings.serving.engine, ("image", "music", "caption"), out,
            cache=home / "cache" / "engines", load=load, gpu=settings.serving.replica_gpus > 0,
        )  # fmt: skip
        self._model = load_predictor(bundle, engines, out, load)
        limits = limits_of(settings)
        preprocessing = default_preprocessing(self._model.backbones)
        self.spec = DecodeSpec(tuple(self._model.dims), sample_rate_of(unpacked(bundle)[0]), preprocessing, limits)
        options: dict[str, Any] = {"batch_size": settings.serving.batch_size, "limits": limits}
        self._short, self._long = (
            Pipeline(self._model.dims, self._model.encoder, preprocessing, _fetch_nothing, **options) for _ in range(2)
        )
        for tower in self._model.dims:
            self._model.predict(tower, made_up_items(tower, self._model.encoder(tower).sample_rate)[:1])
        if "torch" in sys.modules and not settings.serving.replica_gpus:
            sys.modules["torch"].set_num_threads(1)

    def rows(self, items: Sequence[Prepared]) -> list[Row]:
        """A row for every item, in order; call it from one thread at a time."""
        return self._rows(self._short, items)

    def row_of_long(self, item: Prepared) -> Row:
        """The row of an item that is decoded while it is embedded; one thread at a time, also beside `rows`."""
        return self._rows(self._long, [item])[0]

    def _rows(self, pipeline: Pipeline, prepared: Sequence[Prepared]) -> list[Row]:
        items = [
            Item(str(number), one.request["uri"], one.request["modality"], sha256=one.sha256, error=one.error)
            for number, one in enumerate(prepared)
        ]
        predicted = predict(self._model, pipeline.embed_units(items, [one.units for one in prepared]))
        found = {row["id"]: _point(row) for row in predicted.rows.to_pylist()}
        found |= {row["id"]: _problem(row) for row in predicted.errors.to_pylist()}
        stamp = {"model_version": self.info.version, "model_digest": self.info.digest}
        return [{"id": one.request["id"], **found[item.id], **stamp} for item, one in zip(items, prepared, strict=True)]


def _fetch_nothing(*_arguments: object) -> bytes:
    raise MediaError("no-media", "the item has no bytes", stage="fetch")


def _point(row: Mapping[str, Any]) -> Row:
    interval = {axis: (row[f"{axis}_low"], row[f"{axis}_high"]) for axis in AXES}
    names = ("modality", *AXES, "mood", "duration_s", "windows", "sha256", "embedding")
    values = {name: row[name] for name in names}
    return {"status": "ok", **values, "interval": interval if row["valence_low"] is not None else None}


def _problem(row: Mapping[str, Any]) -> Row:
    error = {"code": row["error"], "stage": row["stage"], "message": row["message"]}
    return {"status": "error", "modality": row["modality"], "error": error}


class ModelHost:
    """Follows the registry: loads a new version of serving.model beside the current one, then replaces it.

    A batch uses one model throughout, so a switch loses no request; if loading fails, the current model stays.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        resolve: Callable[[str, Settings], ResolvedModel] = resolve_model,
        load: Callable[[ResolvedModel, Settings], ServedModel] = ServedModel,
    ) -> None:
        """Load the model. Raises as ServedModel, unless serving.wait_for_model is true."""
        self._settings, self._resolve, self._load = settings, resolve, load
        self.model: ServedModel | None = None  # None until the first one is loaded
        self._stop = threading.Event()
        try:
            self.look()
        except (UsageError, CheckFailed, OperationFailed) as error:
            if not settings.serving.wait_for_model:
                raise
            logger.warning("%s: waiting for it (%s)", settings.serving.model, error)

    def look(self) -> bool:
        """Ask the registry, and switch if it names another model or version; returns whether it did."""
        uri = self._settings.serving.model
        resolved = self._resolve(uri, self._settings)
        now = self.model.info if self.model else None
        if now is not None and (now.digest, now.version) == (resolved.digest, resolved.version):
            return False
        self.model = self._load(resolved, self._settings)
        logger.info("%s: now serving version %s (%s)", uri, resolved.version, resolved.digest[:12])
        return True

    def follow(self) -> None:
        """Follow the registry in a thread, until `stop`."""
        threading.Thread(target=self._follow, name="mmva-follow", daemon=True).start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()

    def _follow(self) -> None:
        while not self._stop.wait(self._settings.serving.follow_s):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - an unavailable registry raises anything; the model stays
                logger.warning("%s: the model does not change (%s)", self._settings.serving.model, error)

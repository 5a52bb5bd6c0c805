"""A model that answers: the pipeline of bulk annotation over a handful of items, which may be uploads."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from mmva.errors import MediaError
from mmva.inference.calibration import made_up_items
from mmva.inference.config import EngineInfo, default_preprocessing
from mmva.inference.engines import choose_engines, load_predictor, pack_bundle
from mmva.inference.heads import predict
from mmva.inference.isolation import Isolated, report_step
from mmva.inference.pipeline import Pipeline
from mmva.inference.time_limit import TimeLimit
from mmva.modalities import AXES
from mmva.predictor import Predictor
from mmva_platform.annotation.annotator import LOAD_TIMEOUT_S
from mmva_platform.annotation.fetcher import Fetcher
from mmva_platform.annotation.plan import ModelInfo
from mmva_platform.datasets.embedder import EncoderLoader
from mmva_platform.serving.services import ItemRequest, Row
from mmva_platform.settings import Settings, limits_of
from mmva_platform.storage import StorageUnavailable, open_storage
from mmva_platform.tracking.resolve import ResolvedModel

_ITEM_SCHEMA = pa.schema(
    [*((name, pa.string()) for name in ("id", "uri", "modality", "caption")), ("bytes", pa.int64())]
)


class ServedModel:
    """A loaded model; one thread at a time.

    Attributes:
        info: Which model it is.
    """

    def __init__(self, resolved: ResolvedModel, settings: Settings) -> None:
        """Load towers and encoders, so that the first request waits for nothing.

        Raises:
            UsageError, CheckFailed, OperationFailed: If it cannot be loaded, or is not what the registry says.
        """
        self.info = ModelInfo(name=resolved.name, version=resolved.version, digest=resolved.digest)
        self._settings = _for_serving(settings)
        self._limit = TimeLimit(settings.serving.item_timeout_s)
        bundle = pack_bundle(resolved.bundle_dir)
        home = settings.home.resolve()
        # Exported networks are stored under home, by the model's digest.
        out = open_storage(home / "cache" / "serving" / resolved.digest[:32], settings.storage)
        engines = choose_engines(
            bundle,
            settings.serving.engine,
            ("image", "music", "caption"),
            out,
            cache=home / "cache" / "engines",
            load=EncoderLoader.of(settings),
        )
        self._for_child = _Items(bundle, engines, out.uri, self._settings)
        self._items = replace(self._for_child, on_progress=self._limit.step)
        self._items.warm_up()

    def annotate(self, items: Sequence[ItemRequest]) -> list[Row]:
        """A row for every item, in order. A step that takes too long ends this process."""
        table, uploads = _table(items)
        with self._limit:
            rows = self._items((table, uploads))
        return self._stamped(items, rows)

    def annotate_carefully(self, items: Sequence[ItemRequest]) -> list[Row]:
        """The same in a child process that may die of them; takes seconds to begin. From any thread."""
        table, uploads = _table(items)
        rows: list[Row] = []
        timeout_s = self._settings.annotation.item_timeout_s
        with Isolated(partial(_in_child, self._for_child), timeout_s, LOAD_TIMEOUT_S) as isolated:
            for number, item in enumerate(items):
                row = table.slice(number, 1)
                uri = row["uri"][0].as_py()
                try:
                    rows += isolated((row, {uri: uploads[uri]} if uri in uploads else {}))
                except MediaError as error:
                    problem = {"code": error.code, "stage": error.stage, "message": str(error)}
                    rows.append({"status": "error", "modality": item["modality"], "error": problem})
        return self._stamped(items, rows)

    def _stamped(self, items: Sequence[ItemRequest], rows: Sequence[Row]) -> list[Row]:
        stamp = {"model_version": self.info.version, "model_digest": self.info.digest}
        return [{"id": item["id"], **row, **stamp} for item, row in zip(items, rows, strict=True)]


@dataclass
class _Items:
    """Items to rows, with a model that is loaded on first use; picklable until then."""

    bundle: Mapping[str, bytes]
    engines: Mapping[str, EngineInfo]
    out: str
    settings: Settings
    on_progress: Callable[[str], None] = report_step

    def __post_init__(self) -> None:
        self._uploads: Mapping[str, bytes] = {}

    def __call__(self, job: tuple[pa.Table, Mapping[str, bytes]]) -> list[Row]:
        """Rows of a table of items, in order, and the uploads among them by URI."""
        items, self._uploads = job
        try:
            predicted = predict(self._model, self._pipeline.embed(items, items_at_fault=True))
        finally:
            self._uploads = {}
        rows = {row["id"]: _point(row) for row in predicted.rows.to_pylist()}
        rows |= {row["id"]: _problem(row) for row in predicted.errors.to_pylist()}
        return [rows[name] for name in items["id"].to_pylist()]

    def warm_up(self) -> None:
        """Load every encoder and embed an item with it."""
        for tower in self._model.dims:
            self._model.predict(tower, made_up_items(tower, self._model.encoder(tower).sample_rate)[:1])
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)

    @cached_property
    def _model(self) -> Predictor:
        storage = open_storage(self.out, self.settings.storage)
        return load_predictor(self.bundle, self.engines, storage, EncoderLoader.of(self.settings))

    @cached_property
    def _pipeline(self) -> Pipeline:
        return Pipeline(
            self._model.dims,
            self._model.encoder,
            default_preprocessing(self._model.backbones),
            self._fetch,
            batch_size=self.settings.serving.batch_size,
            limits=limits_of(self.settings),
            on_progress=self.on_progress,
        )

    @cached_property
    def _fetcher(self) -> Fetcher:
        return Fetcher(self.settings.storage, self.settings.serving.roots)

    def _fetch(self, uri: str, size: int | None, most: int) -> bytes:
        if uri in self._uploads:
            return self._uploads[uri]
        try:
            return self._fetcher(uri, size, most)
        except StorageUnavailable as error:  # a bulk run waits; here it is one caller's item
            raise MediaError("storage-unavailable", str(error), stage="fetch") from None


def _in_child(items: _Items) -> Callable[[Any], list[Row]]:
    report_step("load")
    items.warm_up()
    return items


def _for_serving(settings: Settings) -> Settings:
    """The settings with the waits of a caller, which are shorter than those of a bulk run."""
    serving = settings.serving
    storage = settings.storage.model_copy(update={"max_attempts": 2, "patience_s": 0.0})
    annotation = settings.annotation.model_copy(update={"item_timeout_s": serving.item_timeout_s})
    return settings.model_copy(update={"storage": storage, "annotation": annotation})


def _table(items: Sequence[ItemRequest]) -> tuple[pa.Table, dict[str, bytes]]:
    """Items as a table, and the uploads among them by the URI that they get there."""
    names = [f"upload:{uuid.uuid4().hex}" for _ in items]  # a client's URI cannot name another's upload
    uploads = {name: item["data"] for name, item in zip(names, items, strict=True) if item["data"] is not None}
    columns = {
        "id": [str(number) for number in range(len(items))],
        "uri": [name if name in uploads else item["uri"] for name, item in zip(names, items, strict=True)],
        "modality": [item["modality"] for item in items],
        "caption": [item["caption"] for item in items],
        "bytes": [None if item["data"] is None else len(item["data"]) for item in items],
    }
    return pa.Table.from_pydict(columns, schema=_ITEM_SCHEMA), uploads


def _point(row: Mapping[str, Any]) -> Row:
    interval = {axis: (row[f"{axis}_low"], row[f"{axis}_high"]) for axis in AXES}
    return {
        "status": "ok",
        "modality": row["modality"],
        "valence": row["valence"],
        "arousal": row["arousal"],
        "interval": interval if row["valence_low"] is not None else None,
        "mood": row["mood"],
        "duration_s": row["duration_s"],
        "windows": row["windows"],
        "sha256": row["sha256"],
        "embedding": row["embedding"],
    }


def _problem(row: Mapping[str, Any]) -> Row:
    uri, message = row["uri"], row["message"]
    if uri and uri.startswith("upload:"):
        message = message.replace(uri, "upload")
    return {
        "status": "error",
        "modality": row["modality"],
        "error": {"code": row["error"], "stage": row["stage"], "message": message},
    }

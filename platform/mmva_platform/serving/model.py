"""A model that answers: the annotator of the bulk engine over a handful of items, which may be uploads."""

from __future__ import annotations

import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmva.bundle import read_bundle_info
from mmva.errors import MediaError
from mmva.inference.config import Preprocessing
from mmva.media.images import SHORT_SIDE
from mmva.media.windows import HOP_S, WINDOW_S
from mmva.modalities import AXES
from mmva_platform.annotation.annotator import Annotator
from mmva_platform.annotation.careful import annotate_carefully
from mmva_platform.annotation.commit import ShardResult
from mmva_platform.annotation.engines import choose_engines, load_model, made_up_items
from mmva_platform.annotation.plan import CatalogInfo, ModelInfo, Plan
from mmva_platform.annotation.schema import ANNOTATION_VERSION, ITEM_SCHEMA
from mmva_platform.annotation.worker import Fetcher, Watch, pack_bundle
from mmva_platform.serving.services import ItemRequest, Row
from mmva_platform.settings import Settings
from mmva_platform.storage import StorageUnavailable, open_storage
from mmva_platform.tracking.resolve import ResolvedModel

_SHARD = "000000"


@dataclass(frozen=True)
class _Parts:
    """What careful mode needs to load the same model in a process of its own."""

    bundle: Mapping[str, bytes]
    plan: Plan
    out: str
    settings: Settings


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
        self._settings = _impatient(settings)
        plan, out = _plan(resolved, self.info, self._settings)
        self._parts = _Parts(pack_bundle(resolved.bundle_dir), plan, out.uri, self._settings)
        predictor = load_model(self._parts.bundle, plan, out, settings)
        for tower in predictor.dims:
            predictor.predict(tower, made_up_items(tower, predictor.encoder(tower).sample_rate)[:1])
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        self._fetcher = Fetcher(self._settings.storage, plan.roots)
        self._uploads: dict[str, bytes] = {}
        self._annotator = Annotator(
            predictor, plan, self._fetch, batch_size=settings.serving.batch_size, on_progress=self._on_progress
        )

    def annotate(self, items: Sequence[ItemRequest]) -> list[Row]:
        """A row for every item, in order. A step that takes too long ends this process."""
        names = [f"upload:{uuid.uuid4().hex}" for _ in items]  # a client's URI cannot name another's upload
        self._uploads = {
            name: item["data"] for name, item in zip(names, items, strict=True) if item["data"] is not None
        }
        uris = [item["uri"] if item["data"] is None else name for name, item in zip(names, items, strict=True)]
        with Watch(self._settings.annotation.item_timeout_s) as self._watch:
            result = self._annotator.annotate(_SHARD, _table(items, uris))
        self._uploads = {}
        return _rows(result, items, self.info)

    def annotate_carefully(self, items: Sequence[ItemRequest]) -> list[Row]:
        """The same in a child process that may die of them; takes seconds to begin. From any thread."""
        with tempfile.TemporaryDirectory(prefix="mmva-uploads-") as folder:
            uris = []
            for number, item in enumerate(items):
                file = Path(folder).resolve() / str(number)
                if item["data"] is not None:
                    file.write_bytes(item["data"])
                uris.append(item["uri"] if item["data"] is None else str(file))
            parts = self._parts
            plan = parts.plan.model_copy(update={"roots": (*parts.plan.roots, str(Path(folder).resolve()))})
            result = annotate_carefully(
                _SHARD,
                _table(items, uris),
                plan=plan,
                bundle=parts.bundle,
                out=parts.out,
                settings=parts.settings,
                earlier=1,
            )
        return _rows(result, items, self.info)

    def _fetch(self, uri: str, size: int | None, most: int) -> bytes:
        if uri in self._uploads:
            return self._uploads[uri]
        try:
            return self._fetcher(uri, size, most)
        except StorageUnavailable as error:  # in a bulk run everybody waits; here it is one caller's item
            raise MediaError("storage-unavailable", str(error), stage="fetch") from None

    def _on_progress(self, stage: str) -> None:
        self._watch.step(stage)


def _impatient(settings: Settings) -> Settings:
    """Storage and items get the time that a caller has, not a bulk run's."""
    serving = settings.serving
    storage = settings.storage.model_copy(update={"max_attempts": 2, "patience_s": 0.0})
    annotation = settings.annotation.model_copy(update={"item_timeout_s": serving.item_timeout_s})
    return settings.model_copy(update={"storage": storage, "annotation": annotation})


def _plan(resolved: ResolvedModel, info: ModelInfo, settings: Settings) -> tuple[Plan, Any]:
    """A plan without a catalog, and where its exported networks stand: under home, by the model's digest."""
    bundle = read_bundle_info(resolved.bundle_dir)
    out = open_storage(settings.home.resolve() / "cache" / "serving" / resolved.digest[:32], settings.storage)
    plan = Plan(
        annotation_version=ANNOTATION_VERSION,
        run_id="serving",
        created_at=datetime.now(UTC),
        model=info,
        preprocessing=Preprocessing(
            fingerprints={tower: record["fingerprint"] for tower, record in bundle.backbones.items()},
            window_s=WINDOW_S,
            hop_s=HOP_S,
            short_side=SHORT_SIDE,
        ),
        engines=choose_engines(resolved.bundle_dir, settings.serving.engine, list(bundle.dims), out, settings),
        catalog=CatalogInfo(uri="", items=1, by_modality={}, skipped={}, duplicates=0, duplicate_ids=()),
        base=None,
        roots=settings.serving.roots,
        command=(),
        keep_windows=False,
        parts=(),
    )
    return plan, out


def _table(items: Sequence[ItemRequest], uris: Sequence[str | None]) -> pa.Table:
    count = len(items)
    columns = {
        "id": [str(number) for number in range(count)],
        "uri": uris,
        "modality": [item["modality"] for item in items],
        "caption": [item["caption"] for item in items],
        "bytes": [None if item["data"] is None else len(item["data"]) for item in items],
        "etag": [None] * count,
        "base_file": [None] * count,
    }
    return pa.Table.from_pydict(columns, schema=ITEM_SCHEMA)


def _rows(result: ShardResult, items: Sequence[ItemRequest], model: ModelInfo) -> list[Row]:
    rows: dict[int, Row] = {}
    for row in result.ok.to_pylist():
        rows[int(row["id"])] = _point(row)
    for row in result.quarantined.to_pylist():
        problem = {"code": row["error"], "stage": row["stage"], "message": _without_upload(row["message"], row["uri"])}
        rows[int(row["id"])] = {"status": "error", "modality": row["modality"], "error": problem}
    stamp = {"model_version": model.version, "model_digest": model.digest}
    return [{"id": item["id"], **rows[number], **stamp} for number, item in enumerate(items)]


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


def _without_upload(message: str, uri: str | None) -> str:
    return message.replace(uri, "upload") if uri and uri.startswith(("upload:", tempfile.gettempdir())) else message

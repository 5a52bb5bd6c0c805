"""Published annotations without a cluster: of made-up points, and of real files through a bundle; and their updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmva.affect import mood
from mmva.backbones import BackboneSpec
from mmva.engines.choice import pack_bundle
from mmva.inference.config import Preprocessing
from mmva.modalities import MEDIA_KINDS
from mmva.models.bundle import read_bundle_info, save_bundle
from mmva.models.model import MMVA
from mmva_platform.annotation.catalog.catalog import Catalog, open_catalog
from mmva_platform.annotation.plan.plan import Base, ItemReader, ModelInfo, Plan
from mmva_platform.annotation.plan.planning import Stored, write_plan
from mmva_platform.annotation.plan.spool import spooled
from mmva_platform.annotation.run.annotator import Annotator
from mmva_platform.annotation.run.lookup import Lookup
from mmva_platform.annotation.run.stored import StoredRows
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, EMBEDDING_FILE_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.annotation.table.commit import ShardResult, commit_shard, read_commits
from mmva_platform.annotation.table.publish import publish
from mmva_platform.annotation.table.reader import open_annotation
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

from .planned import plan_of, table_of

MODEL = ModelInfo(name="mmva", version=None, digest="d" * 64)
CUT = Preprocessing(fingerprints={}, window_s=3.0, hop_s=1.5, short_side=224)

Rows = list[tuple[str, str, float, float]]


def publish_points(
    out: Path,
    rows: Rows,
    model: ModelInfo = MODEL,
    shard_items: int = 16,
    embeddings: Mapping[str, dict[str, Any]] | None = None,
) -> Path:
    """An annotation of (id, modality, valence, arousal), and `embedding` and `tracks` by id; captions have no URI."""
    storage = open_storage(out)
    plan = plan_of(storage, _catalog_of(rows), model, CUT, shard_items)
    _carry_out(storage, plan, rows, embeddings or {})
    return out


def update_points(
    out: Path, rows: Rows, shard_items: int = 16, embeddings: Mapping[str, dict[str, Any]] | None = None
) -> Path:
    """The next version of such an annotation, by the same model; an item that has moved is a changed one."""
    storage = open_storage(out)
    before = open_annotation(storage)
    with spooled(Catalog.of_table("/m", _catalog_of(rows)), None, Lookup(before)) as spool:
        places: Counter[str] = Counter()
        changed = 0
        for group in spool.groups:
            for chunk in spool.chunks(group):
                places.update(path for path in chunk["base_file"].to_pylist() if path)
                changed += chunk["base_row"].to_pylist().count(-1)
        kept = [file for file in before.all_files if places[file.path] == file.rows]
        base = Base(
            replaced=tuple(file.path for file in before.all_files if file not in kept),
            same_model=True,
            kept=sum(file.rows for file in kept),
            unchanged=places.total(),
            new=spool.catalog.items - places.total() - changed,
            changed=changed,
            removed=sum(file.rows for file in before.all_files) - places.total() - changed,
        )
        plan = write_plan(
            storage, spool, before.model, CUT, shard_items=shard_items, version=before.version + 1, kind="update",
            base=base, stored=Stored({file.path for file in kept}, {*MEDIA_KINDS}), roots=("/m",),
        )  # fmt: skip
    _carry_out(storage, plan, rows, embeddings or {})
    return out


def _catalog_of(rows: Rows) -> pa.Table:
    return table_of([
        {
            "id": name, "uri": None if kind == "caption" else f"/media/{name}", "modality": kind, "bytes": 9,
            "etag": f"{valence},{arousal}",
        }
        for name, kind, valence, arousal in rows
    ])  # fmt: skip


def _carry_out(storage: Storage, plan: Plan, rows: Rows, embeddings: Mapping[str, dict[str, Any]]) -> None:
    points = {name: (valence, arousal) for name, _, valence, arousal in rows}
    items_of = ItemReader(storage, plan)
    for shard in plan.shards:
        items = items_of(shard)
        if items["base_file"][0].is_valid:
            before = open_annotation(storage, version=plan.version - 1)
            result = StoredRows(_not_loaded, plan, before)(shard, items)
        else:
            result = _made_up(plan, shard, items, points, embeddings)
        commit_shard(storage, plan, shard, result)
    publish(storage, plan, read_commits(storage, plan.version, plan.shards))


def _not_loaded() -> MMVA:
    raise AssertionError("rows of the same model are copied, without it")


def _made_up(
    plan: Plan,
    shard: str,
    items: pa.Table,
    points: Mapping[str, tuple[float, float]],
    embeddings: Mapping[str, dict[str, Any]],
) -> ShardResult:
    """Rows with the given points."""
    model = plan.model
    known = {"model_name": model.name, "model_version": model.version, "model_digest": model.digest}
    rows: list[dict[str, Any]] = [
        dict.fromkeys(ANNOTATION_SCHEMA.names)
        | {key: item[key] for key in ("id", "uri", "modality", "caption", "item_digest")}
        | dict(zip(("valence", "arousal"), points[item["id"]], strict=True))
        | {"mood": str(mood(np.array(points[item["id"]]))), "sha256": "0" * 64}
        | known
        | {"run_id": plan.run_id, "shard": shard, "annotated_at": plan.created_at}
        | {"embedding": [0.0]}
        | embeddings.get(item["id"], {})
        for item in items.to_pylist()
    ]
    return ShardResult(
        pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA),
        QUARANTINE_SCHEMA.empty_table(),
        pa.Table.from_pylist([row | {"windows": None} for row in rows], schema=EMBEDDING_FILE_SCHEMA),
        work={"media": len(rows)},
        seconds={"infer": 0.5},
    )


def lively_bundle(
    folder: Path,
    seed: int,
    intervals: dict[str, Any] | None = None,
    specs: Mapping[str, BackboneSpec] | None = None,
) -> Path:
    """A bundle over the tiny encoders, or `specs`, with random heads: untrained ones put everything at (.5, .5)."""
    import torch

    from mmva.backbones import load_encoder, preset

    chosen = preset("tiny").specs | dict(specs or {})
    encoders = {modality: load_encoder(spec) for modality, spec in chosen.items()}
    model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in model.towers.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.attach_encoders(encoders)
    save_bundle(folder, model, intervals=intervals or {}, card="a test", provenance={})
    return folder


def publish_media(out: Path, media: Path, bundle: Path, settings: Settings, version: str | None = None) -> Path:
    """An annotation of a folder of media by a bundle, in this process."""
    storage, info = open_storage(out), read_bundle_info(bundle)
    model = ModelInfo(name="mmva", version=version, digest=info.digest)
    plan = plan_of(storage, open_catalog(str(media), settings.storage), model, CUT, 64)
    annotator = Annotator(pack_bundle(bundle), plan, storage.uri, settings)
    items_of = ItemReader(storage, plan)
    for shard in plan.shards:
        commit_shard(storage, plan, shard, annotator(shard, items_of(shard)))
    publish(storage, plan, read_commits(storage, plan.version, plan.shards))
    return out

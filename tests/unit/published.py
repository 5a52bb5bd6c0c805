"""Published annotations without a cluster: of made-up points, and of real files through a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmva.affect import mood
from mmva.bundle import read_bundle_info, save_bundle
from mmva.inference.config import Preprocessing
from mmva.inference.engines import pack_bundle
from mmva.model import MMVA
from mmva_platform.annotation.annotator import Annotator
from mmva_platform.annotation.catalog import open_catalog
from mmva_platform.annotation.commit import ShardResult, commit_shard, read_commit
from mmva_platform.annotation.plan import ItemReader, ModelInfo
from mmva_platform.annotation.publish import publish
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.settings import Settings
from mmva_platform.storage import open_storage

from .planned import plan_of, table_of

MODEL = ModelInfo(name="mmva", version=None, digest="d" * 64)
CUT = Preprocessing(fingerprints={}, window_s=3.0, hop_s=1.5, short_side=224)


def publish_points(
    out: Path,
    rows: list[tuple[str, str, float, float]],
    model: ModelInfo = MODEL,
    shard_items: int = 16,
    embeddings: Mapping[str, dict[str, Any]] | None = None,
) -> Path:
    """An annotation of (id, modality, valence, arousal), and `embedding` and `tracks` by id; captions have no URI."""
    uris = {name: None if kind == "caption" else f"/media/{name}" for name, kind, *_ in rows}
    values = [{"id": name, "uri": uris[name], "modality": kind, "bytes": 9} for name, kind, *_ in rows]
    storage = open_storage(out)
    plan = plan_of(storage, table_of(values), model, CUT, shard_items)
    points = {name: (valence, arousal) for name, _, valence, arousal in rows}
    known = {"model_name": model.name, "model_version": model.version, "model_digest": model.digest}
    items_of = ItemReader(storage, plan)
    for shard in plan.shards:
        rows_of_shard: list[dict[str, Any]] = [
            dict.fromkeys(ANNOTATION_SCHEMA.names)
            | {key: item[key] for key in ("id", "uri", "modality")}
            | dict(zip(("valence", "arousal"), points[item["id"]], strict=True))
            | {"mood": str(mood(np.array(points[item["id"]]))), "embedding": [0.0], "sha256": "0" * 64}
            | known
            | {"run_id": plan.run_id, "shard": shard, "annotated_at": plan.created_at}
            | (embeddings or {}).get(item["id"], {})
            for item in items_of(shard).to_pylist()
        ]
        table = pa.Table.from_pylist(rows_of_shard, schema=ANNOTATION_SCHEMA)
        commit_shard(storage, plan, shard, ShardResult(table, QUARANTINE_SCHEMA.empty_table()))
    publish(storage, plan, [read_commit(storage, shard) for shard in plan.shards])
    return out


def lively_bundle(folder: Path, seed: int, intervals: dict[str, Any] | None = None) -> Path:
    """A bundle over the tiny encoders with random heads: untrained ones put everything at (.5, .5)."""
    import torch

    from mmva.backbones import load_encoder, preset

    encoders = {modality: load_encoder(spec) for modality, spec in preset("tiny").specs.items()}
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
    publish(storage, plan, [read_commit(storage, shard) for shard in plan.shards])
    return out

"""What heads alone cost: annotating from an earlier annotation's embeddings against annotating from media.

    python benchmarks/reannotation.py --workdir DIR [--pictures 100] [--items 20000] [--rounds 5]

One process on one core. From media: an `Annotator` over JPEGs, 512 pixels wide, with the compact preset's image
encoder, once as fp32 torch and once as the exported network (ONNX Runtime). From the base: a `Reuser` with another
model's heads over as many stored embeddings as --items, which a run of the default layout has committed. Each pass
reads, verifies, writes and commits everything that a worker would; models are loaded before. Interleaved, medians. Exit
code 1 if a pass over the base is less than 100 times as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import torch
from made_media import make_pictures

from mmva.backbones import load_encoder, preset
from mmva.bundle import read_bundle_info, save_bundle
from mmva.inference.config import EngineInfo, Preprocessing
from mmva.inference.engines import choose_engines, load_predictor, pack_bundle
from mmva.inference.pipeline import Pipeline
from mmva.model import MMVA
from mmva_platform.annotation.annotator import Annotator
from mmva_platform.annotation.base import Base, open_base
from mmva_platform.annotation.catalog import Catalog, open_catalog
from mmva_platform.annotation.commit import ShardResult, commit_shard, read_commit
from mmva_platform.annotation.fetcher import Fetcher
from mmva_platform.annotation.plan import ItemReader, ModelInfo, Plan
from mmva_platform.annotation.planning import write_plan
from mmva_platform.annotation.publish import publish
from mmva_platform.annotation.results import annotate_items
from mmva_platform.annotation.reuse import Reuser
from mmva_platform.annotation.schema import ANNOTATION_SCHEMA, CATALOG_SCHEMA, QUARANTINE_SCHEMA
from mmva_platform.annotation.spool import spooled
from mmva_platform.datasets.embedder import EncoderLoader
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage, open_storage

WANTED = 100


class Bench:
    """Two bundles over the compact image encoder, pictures, and a published base of made-up embeddings."""

    def __init__(self, workdir: Path, pictures: int, items: int) -> None:
        self.workdir, self.settings = workdir, Settings(home=workdir / "home")
        self.bundles = [make_bundle(workdir / f"bundle-{seed}", seed) for seed in (0, 1)]
        self.pictures = open_catalog(str(make_pictures(workdir / "pictures", pictures)), self.settings.storage)
        self.embedded = made_up_catalog(items)
        self.load = EncoderLoader.of(self.settings)
        cache, packed = self.settings.home / "cache" / "engines", pack_bundle(self.bundles[0])
        self.engines = {
            name: choose_engines(packed, name, ["image"], self._fresh(f"engine-{name}"), cache=cache, load=self.load)
            for name in ("torch", "onnx")
        }
        self.base = self._write_base()

    def from_media(self, engine: str) -> Callable[[], float]:
        """A pass over the pictures; its result is items a second."""
        model_dir, engines = self.bundles[0], self.engines[engine]
        network = self.workdir / f"engine-{engine}"
        plan = self._planned(self._fresh("first"), self.pictures, model_dir, engines)
        annotator = Annotator(pack_bundle(model_dir), plan, str(network), self.settings)
        annotator.model.encoder("image")

        def run() -> float:
            out = self._fresh("media")
            settled = self._planned(out, self.pictures, model_dir, engines)
            begun, read = time.perf_counter(), ItemReader(out, settled)
            pipeline = fresh_pipeline(annotator)
            for shard in settled.shards:
                result = annotate_items(pipeline, annotator.model, settled, shard, read(shard))
                commit_shard(out, settled, shard, result)
            return finished(out, settled, begun)

        return run

    def from_base(self, bundle: Path) -> Callable[[], float]:
        """A pass over the base's embeddings with a bundle's heads; its result is items a second."""
        opened = open_base(self.base.uri, self.settings)
        model = load_predictor(pack_bundle(bundle), opened.engines, self.base, self.load)
        model.predict_embeddings("image", np.zeros((1, model.dims["image"]), np.float32))  # imports scipy

        def run() -> float:
            out = self._fresh("heads")
            settled = self._planned(out, self.embedded, bundle, opened.engines, opened)
            begun, read = time.perf_counter(), ItemReader(out, settled)
            reuser = Reuser(lambda: model, settled, out, self.settings)
            for shard in settled.shards:
                commit_shard(out, settled, shard, reuser(shard, read(shard)))
            return finished(out, settled, begun)

        return run

    def _write_base(self) -> Storage:
        base, bundle = self._fresh("base"), self.bundles[0]
        plan = self._planned(base, self.embedded, bundle, self.engines["torch"])
        read, rng = ItemReader(base, plan), np.random.default_rng(0)
        dim = read_bundle_info(bundle).dims["image"]
        for shard in plan.shards:
            items = read(shard)
            commit_shard(base, plan, shard, ShardResult(made_up_rows(items, plan, shard, dim, rng), NO_QUARANTINE))
        publish(base, plan, [read_commit(base, shard) for shard in plan.shards])
        return base

    def _planned(
        self, out: Storage, catalog: Catalog, bundle: Path, engines: dict[str, EngineInfo], base: Base | None = None
    ) -> Plan:
        cut, model = cut_of(bundle), identity(bundle)
        with spooled(catalog, stored_files=base.lookup() if base else None) as spool:
            reusable = base.reusable(cut, engines) if base else ()
            info = base.info(model) if base else None
            return write_plan(out, spool, model, cut, engines=engines, base=info, reusable=reusable)

    def _fresh(self, name: str) -> Storage:
        shutil.rmtree(self.workdir / name, ignore_errors=True)
        return open_storage(self.workdir / name)


def fresh_pipeline(annotator: Annotator) -> Pipeline:
    """A pipeline that remembers no embedding of an earlier pass."""
    model, fetch = annotator.model, Fetcher(annotator.settings.storage)
    return Pipeline(model.dims, model.encoder, annotator.plan.preprocessing, fetch)


NO_QUARANTINE = QUARANTINE_SCHEMA.empty_table()


def finished(out: Storage, plan: Plan, begun: float) -> float:
    """Publish; items a second since `begun`."""
    manifest = publish(out, plan, [read_commit(out, shard) for shard in plan.shards])
    assert manifest.totals.ok == plan.catalog.items
    return plan.catalog.items / (time.perf_counter() - begun)


def make_bundle(folder: Path, seed: int) -> Path:
    """A bundle of the compact image encoder with untrained towers of full size."""
    encoder = load_encoder(preset("compact").specs["image"])
    torch.manual_seed(seed)
    model = MMVA({"image": encoder.dim})
    for parameter in model.towers.parameters():  # from zero every point would be the neutral one
        torch.nn.init.normal_(parameter, std=0.05)
    model.attach_encoders({"image": encoder})
    shutil.rmtree(folder, ignore_errors=True)
    save_bundle(folder, model, intervals={"image": {"valence": 0.2, "arousal": 0.2}}, card="-", provenance={})
    return folder


def identity(bundle: Path) -> ModelInfo:
    """As a plan names it."""
    return ModelInfo(name=bundle.name, version=None, digest=read_bundle_info(bundle).digest)


def cut_of(bundle: Path) -> Preprocessing:
    """What a plan records of media and backbones."""
    backbones = read_bundle_info(bundle).backbones
    fingerprints = {name: record["fingerprint"] for name, record in backbones.items()}
    return Preprocessing(fingerprints=fingerprints, window_s=3.0, hop_s=1.5, short_side=224)


def made_up_catalog(count: int) -> Catalog:
    """Images that are nowhere: a pass over a base never opens them."""
    ids = [f"{number // 1000:04d}/{number:08d}.jpg" for number in range(count)]
    uris = [f"/photos/{name}" for name in ids]
    columns = [ids, uris, ["image"] * count, [None] * count, list(range(count)), [f"{n:032x}" for n in range(count)]]
    items = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, CATALOG_SCHEMA, strict=True)],
        schema=CATALOG_SCHEMA,
    )
    return Catalog.of_table("/photos", items)


def made_up_rows(items: pa.Table, plan: Plan, shard: str, dim: int, rng: np.random.Generator) -> pa.Table:
    """Rows as an annotation of these items has them, with embeddings out of a hat."""
    count = items.num_rows
    emb_ND, va_N = rng.normal(0, 1, (count, dim)).astype(np.float32), rng.uniform(0, 1, count)
    offsets = pa.array(np.arange(0, (count + 1) * dim, dim, dtype=np.int32))
    columns = {name: items[name] for name in ("id", "uri", "modality")} | {
        "embedding": pa.ListArray.from_arrays(offsets, pa.array(emb_ND.ravel())),
        "sha256": pa.array([rng.bytes(32).hex() for _ in range(count)]),
    }
    axes = ("valence", "valence_low", "valence_high", "arousal", "arousal_low", "arousal_high")
    columns |= {name: pa.array(va_N.astype(np.float32)) for name in axes}
    stamps = {
        "mood": "calm", "model_name": plan.model.name, "model_version": None, "model_digest": plan.model.digest,
        "run_id": plan.run_id, "shard": shard, "annotated_at": plan.created_at,
        "tracks": None, "duration_s": None, "windows": None,
    }  # fmt: skip
    for name, value in stamps.items():
        columns[name] = pa.repeat(pa.scalar(value, ANNOTATION_SCHEMA.field(name).type), count)
    return pa.Table.from_arrays([columns[name] for name in ANNOTATION_SCHEMA.names], schema=ANNOTATION_SCHEMA)


def main() -> int:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    bench = Bench(arguments.workdir.resolve(), arguments.pictures, arguments.items)
    if hasattr(os, "sched_setaffinity"):  # every thread of both sides on one core
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    passes = {
        "media, torch": bench.from_media("torch"),
        "media, onnx": bench.from_media("onnx"),
        "base, other heads": bench.from_base(bench.bundles[1]),
        "base, same model": bench.from_base(bench.bundles[0]),
    }
    rates: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(arguments.rounds + 1):
        for name, run in passes.items():
            rate = run()
            if number:  # the first round warms up
                rates[name].append(rate)
    found = {name: round(median(values), 1) for name, values in rates.items()}
    ratios = {name: round(found["base, other heads"] / found[f"media, {name}"], 1) for name in ("torch", "onnx")}
    spread = {name: [round(min(values), 1), round(max(values), 1)] for name, values in rates.items()}
    print(json.dumps({"items_per_s": found, "spread": spread, "heads_over_media": ratios}, indent=1))
    return int(min(ratios.values()) < WANTED)


if __name__ == "__main__":
    sys.exit(main())

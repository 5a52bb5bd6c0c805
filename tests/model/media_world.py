"""A few media on disk as a dataset's shards, and the plan of a media run on them: no import, no Ray."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
from PIL import Image

from mmva.backbones import preset
from mmva.files import sha256_hex
from mmva_platform.datasets.embedding.worker import EncoderLoader
from mmva_platform.datasets.schema import ShardInfo, parquet_bytes
from mmva_platform.settings import Settings, validate
from mmva_platform.storage import open_storage
from mmva_platform.training.loop.data import partners
from mmva_platform.training.media.cache import MediaCache
from mmva_platform.training.media.items import MediaPairing, MediaRows
from mmva_platform.training.media.model import Heads
from mmva_platform.training.media.run import MediaPlan
from mmva_platform.training.recipe import Recipe

IMAGES, CLIPS = 10, 13
# Every third clip has no caption, and one caption has no clip.
CAPTIONS = {f"clip{row}": f"tune number {row}" for row in range(CLIPS) if row % 3} | {
    "alone": "a caption without a clip"
}


def recipe_of(**changes: Any) -> Recipe:
    values = {"dataset": "made", "preset": "tiny", "mode": "media", "epochs": 2, "batch_size": 4, "workers": 1}
    values |= {"model": {"hidden": 8}, "media": {"layers": {"image": 1, "music": 1, "caption": 1}}}
    values |= changes
    values["media"] = {"loaders": 0, **values["media"]}  # decode in this process
    return validate(Recipe, values, "test recipe")


def plan_of(folder: Path, recipe: Recipe) -> MediaPlan:
    """Training and validation on the same items: images in one shard, clips in another."""
    rng = np.random.default_rng(0)
    pictures = [_png(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)) for _ in range(IMAGES)]
    # One clip is longer than a window.
    clips = [_wav(rng.normal(0, 0.1, 16_000 * (5 if row == 4 else 1))) for row in range(CLIPS)]
    storage = open_storage(folder / "dataset")
    shards = tuple(_shard(storage, name, media) for name, media in (("image", pictures), ("music", clips)))
    ids = {"music": np.array([f"clip{row}" for row in range(CLIPS)]), "caption": np.array(list(CAPTIONS))}
    rows, first = partners(ids)
    partner_va_M2 = rng.uniform(0.2, 0.8, (sum(map(len, first.values())), 2))
    items = {
        "image": MediaRows(np.zeros(IMAGES, np.int64), np.arange(IMAGES)),
        "music": MediaRows(np.ones(CLIPS, np.int64), np.arange(CLIPS)),
        "caption": MediaRows(*(np.zeros(len(CAPTIONS), np.int64),) * 2, tuple(CAPTIONS.values())),
    }
    pairing = MediaPairing(rng.uniform(0.2, 0.8, (IMAGES, 2)), partner_va_M2, rows, items)
    specs = {str(modality): spec.to_json() for modality, spec in preset("tiny").specs.items()}
    cache = MediaCache(folder / "cache", storage, shards)
    return MediaPlan(pairing, pairing, cache, EncoderLoader.of(Settings(home=folder)), specs, _heads(recipe, pairing))


def _heads(recipe: Recipe, pairing: MediaPairing) -> Heads:
    import torch

    from mmva.models.model import MMVA, ModelConfig

    dims = dict.fromkeys(("image", "music", "caption"), 64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MMVA(dims, ModelConfig(**recipe.model.model_dump(), sigma=recipe.loss.sigma))
        for tower in model.towers.values():
            torch.nn.init.normal_(tower.linear.weight, std=0.1)
    assert pairing.labels().keys() == dims.keys()
    return Heads(dims, model.state_dict(), {modality: [0.01, 0.01] for modality in dims})


def _shard(storage: Any, name: str, media: list[bytes]) -> ShardInfo:
    data = parquet_bytes(pa.table({"media": pa.array(media, pa.large_binary())}))
    storage.write(f"{name}.parquet", data)
    return ShardInfo(name=f"{name}.parquet", modality=name, rows=len(media), bytes=len(data), sha256=sha256_hex(data))


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def _wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV")
    return file.getvalue()

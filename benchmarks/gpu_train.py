"""Media mode on a CUDA GPU next to the same steps on tensors that are already there; `gpu.py train` runs it.

Both sides take the training loop's own step: two blocks of the image and caption backbones and one of the music
backbone train, in bfloat16. One process without Ray Train, which adds nothing to feeding a GPU.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gpu_bounds import Utilization
from report import Report

from mmva_platform.settings import Settings, validate
from mmva_platform.training.recipe import Recipe

if TYPE_CHECKING:
    from mmva.backbones.presets import Preset

WARM_UP: Final = 5  # steps
TARGET: Final = "at least .8"


def measure_train(
    workdir: Path, backbones: Preset, report: Report, *, items: int, batch_size: int, seconds: float
) -> None:
    """Pairs (an image, a clip, a caption) a second of both sides, added to the report; `seconds` each, about."""
    import torch

    from mmva.losses import loss_scales
    from mmva.matching import batches
    from mmva_platform.training.loop.loop import batch_counts, plan_epoch, train_step
    from mmva_platform.training.loop.state import WORLD_OF_ONE
    from mmva_platform.training.media.run import plan_media, prepare_media

    settings = Settings(home=workdir / "home", scratch=workdir / "scratch")
    recipe = recipe_of(make_dataset(workdir, backbones, items, settings), backbones, batch_size)
    torch.set_float32_matmul_precision("high")  # as a worker does
    plan, _ = plan_media(recipe, settings)
    state, source = prepare_media(recipe, plan, None, WORLD_OF_ONE, torch.device("cuda"))
    state.model.train()
    drawn = plan_epoch(source.pairing, recipe, 0)
    shares = [share for share in batches(drawn, batch_size) if share.stop - share.start == batch_size]
    counts_ST = torch.from_numpy(batch_counts(source.pairing, drawn, recipe))
    scale_T = loss_scales(counts_ST[0], recipe.loss).float().cuda()
    ready = next(iter([*source.batches(drawn, 0, shares[:1])]))

    def rate(steps: Any) -> float:
        """Pairs a second over whole passes."""
        torch.cuda.synchronize()
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for pieces in steps():
                train_step(state, pieces, scale_T, recipe)
                done += batch_size
            torch.cuda.synchronize()
        return done / (time.perf_counter() - began)

    for _ in range(WARM_UP):
        train_step(state, ready, scale_T, recipe)
    alone = rate(lambda: itertools.repeat(ready, len(shares)))
    [*source.batches(drawn, 0, shares)]  # unpacks the shards, starts the loaders
    torch.cuda.reset_peak_memory_stats()
    with Utilization() as utilization:
        fed = rate(lambda: source.batches(drawn, 0, shares))
    report.add("train, tensors on the GPU: images and clips/s, each", alone)
    report.add("train, media mode: images and clips/s, each", fed)
    report.add("media mode / tensors on the GPU", fed / alone, TARGET)
    report.add("media mode: GPU utilization, %", utilization.mean())
    report.add("media mode: peak GPU memory, GB", torch.cuda.max_memory_allocated() / 1e9)


def recipe_of(dataset: str, backbones: Preset, batch_size: int) -> Recipe:
    """Media mode as shipped, but for the size of a step."""
    values = {"dataset": dataset, "preset": backbones.name, "mode": "media", "batch_size": batch_size, "workers": 1}
    values |= {"optimizer": {"ridge": 0.1}, "media": {"layers": {"image": 2, "music": 1, "caption": 2}}}
    return validate(Recipe, values, "benchmark")


def make_dataset(workdir: Path, backbones: Preset, items: int, settings: Settings) -> str:
    """Generated images, clips and captions, imported and embedded; what is there is kept."""
    from mmva.imemnet.generator import generate
    from mmva_platform.datasets.embedding.run import embed_dataset
    from mmva_platform.datasets.importing.run import ImportConfig, import_dataset
    from mmva_platform.datasets.sources.config import ImemnetSource

    media, dataset = workdir / "train-media", workdir / "train-dataset"
    if not media.exists():
        generate(media, images=items, clips=items, seed=0)
    if not (dataset / "dataset.json").exists():
        source = ImemnetSource(root=str(media))
        import_dataset(ImportConfig(sources=(source,), fractions=(0.9, 0.05, 0.05)), str(dataset), settings)
        embed_dataset(str(dataset), backbones, None, settings, engine="cuda")
    return str(dataset)

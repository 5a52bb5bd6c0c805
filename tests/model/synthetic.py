"""Synthetic features with a learnable relation, and the training run that a rank does on them.

As a script: `python synthetic.py RANK SIZE RENDEZVOUS OUT OVER [CHECKPOINT]` trains as one of SIZE gloo processes, from
a checkpoint if one is named; OVER is loss.similarity_over, or "projections" for all pairs of them; rank 0 writes what
the run computed to OUT.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmva_platform.settings import validate
from mmva_platform.training.loop.data import Triplets
from mmva_platform.training.loop.features import FeatureSource
from mmva_platform.training.loop.loop import Callback, fit
from mmva_platform.training.loop.state import TrainState, World, build_model, new_state
from mmva_platform.training.recipe import Recipe

DIMS = {"image": 7, "music": 6, "caption": 5}
# Weights of embeddings are the same for every split, or a validation split would have nothing to do with training.
RELATION = {modality: np.random.default_rng(len(modality)).normal(size=(dim, 2)) for modality, dim in DIMS.items()}


def triplets_of(images: int, clips: int, seed: int = 0) -> Triplets:
    """One split: labels are a noisy function of the embeddings; every fourth clip has no caption."""
    rng = np.random.default_rng(seed)

    def rows(count: int, modality: str) -> tuple[Any, Any]:
        emb_ND = rng.normal(size=(count, DIMS[modality])).astype(np.float32)
        va_N2 = 1 / (1 + np.exp(-0.5 * emb_ND @ RELATION[modality])) + rng.normal(0, 0.02, (count, 2))
        return emb_ND, np.clip(va_N2, 0, 1)

    image_emb_ND, image_va_N2 = rows(images, "image")
    music_emb_MD, music_va_M2 = rows(clips, "music")
    mask_M = np.arange(clips) % 4 != 3
    caption_emb_KD = (np.log(music_va_M2 + 0.01) @ RELATION["caption"].T).astype(np.float32)[mask_M]
    caption_row_M = np.where(mask_M, np.cumsum(mask_M) - 1, -1)
    return Triplets(
        image_va_N2,
        music_va_M2,
        {"music": np.arange(clips), "caption": caption_row_M},
        {"image": image_emb_ND, "music": music_emb_MD, "caption": caption_emb_KD},
    )


def recipe_of(**changes: Any) -> Recipe:
    """A small recipe without dropout, whose random draws depend on how a batch is divided."""
    values = {
        "dataset": "synthetic",
        "preset": "tiny",
        "epochs": 3,
        "batch_size": 8,
        "model": {"hidden": 16, "dropout": 0.0, "input_dropout": 0.0},
        **changes,
    }
    return validate(Recipe, values, "test recipe")


def source_of(train: Triplets, val: Triplets, recipe: Recipe, like: torch.Tensor | None = None) -> FeatureSource:
    """Features mode over two splits."""
    return FeatureSource(train, val, recipe.loss.sigma, like)


class StopAt:
    """Stops after so many steps, keeping what a checkpoint then holds."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.content: dict[str, Any] = {}

    def on_step_end(self, state: TrainState, row: dict[str, Any] | None) -> bool:
        """In the middle of an epoch, or at its end."""
        del row
        if state.step == self.step:
            self.content = state.state_dict()
        return state.step == self.step


def run(
    world: World, over: str, checkpoint: dict[str, Any] | None = None, callback: Callback | None = None
) -> dict[str, Any]:
    """Train in double precision on 36 images and 53 clips: batches of 7, so the tail has one pair."""
    loss = {"similarity_over": over} if over != "projections" else {"similarity_over": "all", "similarity_by": over}
    recipe = recipe_of(batch_size=7, loss=loss)
    train, val = triplets_of(36, 53), triplets_of(11, 9, seed=1)
    model = build_model(recipe, train).double()
    state = new_state(model, recipe, train, val, world)
    if checkpoint is not None:
        state.load_state_dict(checkpoint, world)
    if world.size > 1:
        state.parallel = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    gradients = []
    state.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).clone())
    )
    like = next(model.parameters())
    fit(state, source_of(train, val, recipe, like), recipe, world=world, callback=callback)
    return {
        "losses": np.array([row["loss"] for row in state.history]),
        "gradients": torch.stack(gradients).numpy(),
        "weights": torch.cat([p.detach().flatten() for p in model.parameters()]).numpy(),
    }


if __name__ == "__main__":
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=size)
    start = torch.load(sys.argv[6], weights_only=True) if len(sys.argv) > 6 else None
    computed = run(World(rank, size), sys.argv[5], start)
    if rank == 0:
        np.savez(Path(sys.argv[4]), **computed)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads race the interpreter's end: one in some runs aborted

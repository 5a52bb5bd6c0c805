"""What each Ray Train worker runs: restore, fit, and one committed checkpoint an epoch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mmva_platform.training.recipe import Recipe


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's per-worker function.

    Args:
        config: `recipe` (plain values), `train` and `val` (object references of Triplets: workers of one machine read
            the same memory), `progress` (a queue that takes each epoch's row).
    """
    import ray
    from ray.train.torch import get_device

    from mmva_platform.training.build import build_model
    from mmva_platform.training.checkpoint import read_state, restore
    from mmva_platform.training.loop import TrainState, World, fit, new_state

    recipe = Recipe.model_validate(config["recipe"])
    train, val = ray.get([config["train"], config["val"]])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    state = new_state(build_model(recipe, train).to(get_device()), recipe, train, val, world)
    last = ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as folder:
            restore(state, read_state(Path(folder)), world)

    def on_epoch(state: TrainState, row: dict[str, Any]) -> None:
        _commit(state, row, world)
        if world.rank == 0:
            config["progress"].put(row)

    fit(state, train, val, recipe, world=world, on_epoch=on_epoch)


def _commit(state: Any, row: dict[str, Any], world: Any) -> None:
    """Report the epoch; Ray commits checkpoint and metrics together once every rank is here."""
    import ray.train

    from mmva_platform.training.checkpoint import gather_rng, save_state

    rng = gather_rng(world)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if world.rank == 0:
            save_state(state, Path(folder), rng)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(row, checkpoint=checkpoint)

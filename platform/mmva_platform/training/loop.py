"""The training loop: pure torch, the same with and without Ray, the same for any number of workers.

A step is defined by its *global* batch. Each worker computes its share's part of every mean (share / global count), and
gradients are summed, so the tail batch, a share without captions and even an empty share all come out exactly as with
one worker. Shapes: B pairs of the share; D differs by modality.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmva.losses import loss_sums
from mmva.matching import EpochPlan, batches, epoch_plan, score_histogram
from mmva.metrics import matching_mse, va_metrics
from mmva.model import MMVA
from mmva_platform.training.build import build_optimizer, build_schedule, penalty_gradients
from mmva_platform.training.data import Triplets
from mmva_platform.training.probe import start_from_probes
from mmva_platform.training.recipe import Recipe

Row = dict[str, Any]
StepSums = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch; B may be 0. The mask says which rows have a caption."""

    embeddings: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    caption_mask_B: torch.Tensor


@dataclass(frozen=True)
class World:
    """Who computes: this process's rank among `size`."""

    rank: int = 0
    size: int = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all workers, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor


WORLD_OF_ONE = World()


@dataclass
class TrainState:
    """Everything a run carries from step to step; `checkpoint.py` writes it down."""

    model: MMVA
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    penalised: list[tuple[torch.Tensor, torch.Tensor]]
    epoch: int = 0
    step: int = 0
    history: list[Row] = field(default_factory=list)


def steps_per_epoch(train: Triplets, recipe: Recipe) -> int:
    """Optimiser steps an epoch takes: the smaller side's pairs in global batches, the tail included."""
    return math.ceil(min(len(train.image_va_N2), len(train.music_va_M2)) / recipe.batch_size)


def new_state(model: MMVA, recipe: Recipe, train: Triplets, val: Triplets, world: World = WORLD_OF_ONE) -> TrainState:
    """Probes, fresh optimiser, schedule and average around a model; starts this rank's random stream."""
    if recipe.optimizer.ridge == "auto":
        penalties = start_from_probes(model, train, val)
    else:
        penalties = dict.fromkeys(model.dims, np.full(2, recipe.optimizer.ridge))
    rows = {modality: len(emb_ND) for modality, emb_ND in train.embeddings().items()}
    optimizer = build_optimizer(model, recipe.optimizer)
    schedule = build_schedule(optimizer, recipe.schedule, total_steps=recipe.epochs * steps_per_epoch(train, recipe))
    ema = get_ema_multi_avg_fn(recipe.averaging.decay)  # type: ignore[no-untyped-call]  # torch does not type it
    average = AveragedModel(model, multi_avg_fn=ema)
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, world.rank]).generate_state(1)[0]))
    return TrainState(model, average, optimizer, schedule, penalty_gradients(model, rows, penalties))


def fit(
    state: TrainState,
    train: Triplets,
    val: Triplets,
    recipe: Recipe,
    *,
    world: World = WORLD_OF_ONE,
    on_epoch: Callable[[TrainState, Row], None] = lambda _state, _row: None,
) -> TrainState:
    """Train from `state.epoch` to the recipe's last epoch.

    Args:
        state: Fresh or restored.
        train: Training split.
        val: Validation split; rank 0 measures on it.
        recipe: The run's recipe.
        world: This worker's place.
        on_epoch: Called on every rank after each epoch, with the state and the epoch's row of the history.
    """
    while state.epoch < recipe.epochs:
        began = time.monotonic()
        row = train_epoch(state, train, recipe, world)
        state.epoch += 1
        if world.rank == 0:
            row |= validate(state.average.module, val, recipe.loss.sigma)
        row["seconds"] = time.monotonic() - began
        state.history.append(row)
        on_epoch(state, row)
    return state


def train_epoch(state: TrainState, data: Triplets, recipe: Recipe, world: World = WORLD_OF_ONE) -> Row:
    """One pass over the epoch's plan; the row holds mean loss parts and the plan's target scores."""
    plan = plan_epoch(data, recipe, state.epoch)
    state.model.train()
    totals = [
        train_step(state, batch(data, plan, share, state), recipe, world)
        for share in batches(plan, recipe.batch_size, rank=world.rank, world_size=world.size)
    ]
    return {
        "epoch": state.epoch,
        "step": state.step,
        "lr": float(state.schedule.get_last_lr()[0]),
        "pairs": len(plan.target_P),
        **_mean_parts(totals, recipe),
        "target_mean": float(plan.target_P.mean()),
        "target_histogram": [int(count) for count in score_histogram(plan.target_P)],
    }


def train_step(state: TrainState, share: Batch, recipe: Recipe, world: World = WORLD_OF_ONE) -> StepSums:
    """Forward, backward, one optimiser step on the global batch of which this is the rank's share.

    Returns:
        Each loss term's sum and count over the global batch, the same on every rank.
    """
    sums = loss_sums(state.model(share.embeddings), share.labels, share.caption_mask_B, recipe.loss)
    both_2T = world.sum(torch.stack([sums.sums_T.detach().double(), sums.counts_T]))
    state.optimizer.zero_grad(set_to_none=False)
    torch.autograd.backward(sums.total(recipe.loss, both_2T[1]))
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    _sum_gradients(parameters, world)
    if recipe.optimizer.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, recipe.optimizer.max_grad_norm)
    with torch.no_grad():
        for parameter, factor_21 in state.penalised:
            assert parameter.grad is not None
            parameter.grad.add_(factor_21 * parameter)
    state.optimizer.step()
    state.schedule.step()
    state.average.update_parameters(state.model)
    state.step += 1
    return dict(zip(sums.names, both_2T.T.tolist(), strict=True))


def _sum_gradients(parameters: list[torch.nn.Parameter], world: World) -> None:
    """Replace every gradient by its sum over ranks, in one collective call."""
    if world.size == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = world.sum(torch.cat([gradient.flatten() for gradient in gradients]))
    pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)


def _mean_parts(totals: list[StepSums], recipe: Recipe) -> dict[str, float]:
    """The epoch's mean of each term, and their weighted sum as "loss"."""
    means = {}
    for name in totals[0]:
        count = sum(step[name][1] for step in totals)
        means[name] = sum(step[name][0] for step in totals) / max(1.0, count)
    weights = recipe.loss.weights()
    return {"loss": sum(weights[name] * mean for name, mean in means.items()), **means}


def plan_epoch(data: Triplets, recipe: Recipe, epoch: int) -> EpochPlan:
    """The epoch's pairs: a pure function of labels, seed, epoch and strategy."""
    return epoch_plan(
        data.image_va_N2,
        data.music_va_M2,
        seed=recipe.seed,
        epoch=epoch,
        strategy=recipe.strategy,
        sigma=recipe.loss.sigma,
    )


def batch(data: Triplets, plan: EpochPlan, share: slice | NDArray[np.int64], state: TrainState) -> Batch:
    """The share's rows as tensors of the model's device and precision."""
    image_B, music_B = plan.image_index_P[share], plan.music_index_P[share]
    like = next(state.model.parameters())

    def tensor(array: NDArray[np.floating]) -> torch.Tensor:
        return torch.as_tensor(array, dtype=like.dtype, device=like.device)

    music_va_B2 = tensor(data.music_va_M2[music_B])
    return Batch(
        {
            "image": tensor(data.image_emb_ND[image_B]),
            "music": tensor(data.music_emb_MD[music_B]),
            "caption": tensor(data.caption_emb_MD[music_B]),
        },
        {"image": tensor(data.image_va_N2[image_B]), "music": music_va_B2, "caption": music_va_B2},
        torch.as_tensor(data.caption_mask_M[music_B], device=like.device),
    )


def validate(model: torch.nn.Module, data: Triplets, sigma: float) -> Row:
    """The validation metrics that choose the best checkpoint.

    Returns:
        val_va_mse (mean over modalities and axes), val_matching_mse (mean over image-music and image-caption, every
        pair), val_total (their sum), and the R2 of each modality and axis for the curves.
    """
    assert isinstance(model, MMVA)
    embeddings = data.embeddings()
    labels = {"image": data.image_va_N2, "music": data.music_va_M2, "caption": data.music_va_M2[data.caption_mask_M]}
    points = {modality: model.predict_embeddings(modality, emb_ND) for modality, emb_ND in embeddings.items()}
    row: Row = {}
    errors = []
    for modality, va_N2 in points.items():
        for axis, values in va_metrics(va_N2, labels[modality]).items():
            errors.append(values["mse"])
            row[f"val_r2/{modality}/{axis}"] = values["r2"]
    matching = [
        matching_mse(points["image"], points[other], labels["image"], labels[other], sigma=sigma)
        for other in ("music", "caption")
    ]
    row["val_va_mse"], row["val_matching_mse"] = float(np.mean(errors)), float(np.mean(matching))
    row["val_total"] = row["val_va_mse"] + row["val_matching_mse"]
    return row

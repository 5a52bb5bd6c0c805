"""From a recipe's options to the objects the loop moves: model, optimiser, schedule.

One place, so that a resumed run, another worker and the final bundle all get the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmva.model import MMVA, ModelConfig
from mmva_platform.training.data import Pairing, Triplets
from mmva_platform.training.gradients import Gradients
from mmva_platform.training.loop import WORLD_OF_ONE, TrainState, World, steps_per_epoch
from mmva_platform.training.probe import start_from_probes
from mmva_platform.training.recipe import OptimizerOptions, Recipe, ScheduleOptions


def build_model(recipe: Recipe, train: Triplets) -> MMVA:
    """Untrained towers over the training split's embeddings: weights from the seed, statistics from the split."""
    config = ModelConfig(**recipe.model.model_dump(), sigma=recipe.loss.sigma)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = MMVA({modality: emb_ND.shape[1] for modality, emb_ND in train.emb.items()}, config)
    model.set_statistics(train.emb)
    return model


def new_state(model: MMVA, recipe: Recipe, train: Triplets, val: Triplets, world: World = WORLD_OF_ONE) -> TrainState:
    """Probes, fresh optimiser, schedule and average around a model; starts this rank's random stream.

    Rank 0 computes the probes and all take its own: two machines' linear algebra may differ in the last bits.
    """
    if recipe.optimizer.ridge == "auto":
        found = start_from_probes(model, train, val) if world.rank == 0 else None
        weights, penalties = world.first((model.state_dict(), found))
        model.load_state_dict(weights)
    else:
        penalties = dict.fromkeys(model.dims, [recipe.optimizer.ridge] * 2)
    return state_around(model, recipe, train, penalties, world)


def state_around(
    model: MMVA, recipe: Recipe, train: Triplets, penalties: dict[str, list[float]], world: World = WORLD_OF_ONE
) -> TrainState:
    """A state at the run's beginning around towers and their known penalties: what a checkpoint is restored into."""
    rows = {modality: len(emb_ND) for modality, emb_ND in train.emb.items()}
    penalised = penalty_gradients(model, rows, penalties)
    optimizer = build_optimizer(model.parameters(), recipe.optimizer)
    return make_state(optimizer, recipe, train, world, module=model, penalised=penalised, penalties=penalties)


def make_state(
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    pairing: Pairing,
    world: World,
    *,
    module: torch.nn.Module,
    penalised: list[tuple[torch.Tensor, torch.Tensor]],
    penalties: dict[str, list[float]],
) -> TrainState:
    """Schedule and average around what trains; starts this rank's random stream."""
    total_steps = recipe.epochs * steps_per_epoch(pairing, recipe)
    schedule = build_schedule(optimizer, recipe.schedule, total_steps=total_steps)
    ema = get_ema_multi_avg_fn(recipe.averaging.decay)  # type: ignore[no-untyped-call]  # torch does not type it
    average = AveragedModel(module, multi_avg_fn=ema)
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, world.rank]).generate_state(1)[0]))
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = Gradients(moving, len(recipe.loss.weights()))
    return TrainState(module, average, gradients, optimizer, schedule, penalised, penalties=penalties)


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter] | list[dict[str, Any]], options: OptimizerOptions
) -> torch.optim.Optimizer:
    """The optimiser; the ridge penalty is not its weight decay, see `penalty_gradients`."""
    if options.name == "sgd":
        return torch.optim.SGD(parameters, lr=options.lr, momentum=options.betas[0])
    return torch.optim.Adam(parameters, lr=options.lr, betas=options.betas)


def penalty_gradients(
    model: MMVA, rows: Mapping[str, int], penalties: Mapping[str, Sequence[float]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights [2, *] that are penalised, and the factors [2, 1] by which they enter their own gradient.

    The loss is a mean over rows and both axes, and a sigmoid's slope at its middle is 1/4: an L2 coefficient of
    alpha / (16 rows) then weighs like alpha in a ridge regression on the labels themselves.

    Args:
        model: Towers.
        rows: Training rows of each modality.
        penalties: Ridge penalty per input dimension, [2] for each modality.
    """
    factors = []
    for modality in model.dims:
        tower = model.tower(modality)
        factor_21 = torch.tensor([penalty / (16 * rows[modality]) for penalty in penalties[modality]]).to(
            tower.linear.weight
        )[:, None]
        factors.append((tower.linear.weight, factor_21 * tower.dim))
        if tower.projection is not None:
            factors.append((tower.head.weight, factor_21))
    return factors


def build_schedule(
    optimizer: torch.optim.Optimizer, options: ScheduleOptions, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then cosine to 0 or constant; one tick a step."""
    warmup = round(options.warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if options.kind == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

"""From a recipe's options to the objects the loop moves: model, optimiser, schedule.

One place, so that a resumed run, another worker and the final bundle all get the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from mmva.model import MMVA, ModelConfig
from mmva_platform.training.data import Triplets
from mmva_platform.training.recipe import OptimizerOptions, Recipe, ScheduleOptions


def build_model(recipe: Recipe, train: Triplets) -> MMVA:
    """Untrained towers over the training split's embeddings: weights from the seed, statistics from the split."""
    embeddings = train.embeddings()
    config = ModelConfig(**recipe.model.model_dump(), sigma=recipe.loss.sigma)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = MMVA({modality: emb_ND.shape[1] for modality, emb_ND in embeddings.items()}, config)
    model.set_statistics(embeddings)
    return model


def build_optimizer(model: MMVA, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimiser; the ridge penalty is not its weight decay, see `penalty_gradients`."""
    if options.name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=options.lr, momentum=options.betas[0])
    return torch.optim.Adam(model.parameters(), lr=options.lr, betas=options.betas)


def penalty_gradients(
    model: MMVA, rows: Mapping[str, int], penalties: Mapping[str, NDArray[np.float64]]
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
        factor_21 = torch.as_tensor(penalties[modality] / (16 * rows[modality])).to(tower.linear.weight)[:, None]
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

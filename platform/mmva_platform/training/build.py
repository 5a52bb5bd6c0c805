"""From a recipe's options to the objects the loop moves: model, optimiser, schedule.

One place, so that a resumed run, another worker and the final bundle all get the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

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


def build_optimizer(model: MMVA, options: OptimizerOptions, rows: Mapping[str, int]) -> torch.optim.Optimizer:
    """The optimiser, with the recipe's ridge penalty on the paths of every tower.

    The loss is a mean over rows and both axes, and a sigmoid's slope at its middle is 1/4: an L2 coefficient of
    alpha / (16 rows) then weighs like alpha in a ridge regression on the labels themselves.

    Args:
        model: Towers.
        options: Optimiser and penalty.
        rows: Training rows of each modality.
    """
    groups = []
    for modality in model.dims:
        tower = model.tower(modality)
        decay = options.ridge / (16 * rows[modality])
        paths = {"linear.weight": decay * tower.dim, "head.weight": decay}
        for name, parameter in tower.named_parameters():
            groups.append({"params": [parameter], "weight_decay": paths.get(name, 0.0)})
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.betas[0])
    return torch.optim.Adam(groups, lr=options.lr, betas=options.betas)


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

"""From a recipe's options to the objects the loop moves: model, optimiser, schedule.

One place, so that a resumed run, another worker and the final bundle all get the same.
"""

from __future__ import annotations

import math

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


def build_optimizer(model: torch.nn.Module, options: OptimizerOptions) -> torch.optim.Optimizer:
    """The optimiser; weight decay acts on matrices only, never on biases and normalisation."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.betas[0])
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas)


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

"""Ten steps of training on fixed data, against losses that were written down once.

A change of the sampler, the loss, the towers, their initialisation or the optimiser shows here first. If it was meant:
`python tests/model/test_golden_trace.py` writes the new trace, and the commit says why it moved.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmva.losses import loss_scales
from mmva_platform.training.loop.loop import batch_counts, plan_epoch, train_step
from mmva_platform.training.loop.state import build_model, new_state
from mmva_platform.training.recipe import Recipe

GOLDEN = Path(__file__).with_name("golden_trace.json")
STEPS = 10


def trace(synthetic: ModuleType) -> dict[str, list[float]]:
    """Every loss term's mean at each step; double precision, so that machines agree; dropout pins the random stream."""
    recipe: Recipe = synthetic.recipe_of(seed=7, model={"hidden": 16, "dropout": 0.1, "input_dropout": 0.2})
    train, val = synthetic.triplets_of(8 * STEPS, 100, seed=7), synthetic.triplets_of(16, 20, seed=8)
    state = new_state(build_model(recipe, train).double(), recipe, train, val)
    plan = plan_epoch(train, recipe, epoch=0)
    shares = [slice(8 * step, 8 * (step + 1)) for step in range(STEPS)]
    counts_ST = torch.from_numpy(batch_counts(train, plan, recipe))
    scale_ST = loss_scales(counts_ST, recipe.loss)
    terms: dict[str, list[float]] = {}
    source = synthetic.source_of(train, val, recipe, next(state.model.parameters()))
    for step, pieces in enumerate(source.batches(plan, 0, shares)):
        mean_T = train_step(state, pieces, scale_ST[step], recipe) / counts_ST[step]
        for term, mean in zip(recipe.loss.terms(), mean_T.tolist(), strict=True):
            terms.setdefault(term.name, []).append(mean)
    return terms


def test_losses_follow_the_golden_trace(synthetic: ModuleType) -> None:
    golden = json.loads(GOLDEN.read_text())
    measured = trace(synthetic)
    assert measured.keys() == golden.keys()
    for name, losses in golden.items():
        assert measured[name] == pytest.approx(losses, rel=1e-6), name


if __name__ == "__main__":
    import synthetic as module

    GOLDEN.write_text(json.dumps(trace(module), indent=1) + "\n")

"""The training loop: pure torch, the same with and without Ray, the same for any number of workers.

A step is defined by its *global* batch. Each worker computes its share's part of every mean (share / global count), and
gradients are summed, so the tail batch, a share without captions and even an empty share all come out exactly as with
one worker. Shapes: B pairs of the share; D differs by modality.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.optim.swa_utils import AveragedModel

from mmva.losses import loss_counts, loss_sums
from mmva.matching import EpochPlan, batches, epoch_plan, score_histogram
from mmva_platform.training.data import Pairing
from mmva_platform.training.gradients import Gradients
from mmva_platform.training.recipe import Recipe

Row = dict[str, Any]
StepSums = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, in the pieces that go through the model one after another; B may be 0.

    Attributes:
        inputs: What the model takes, piece by piece.
        labels: Labels [B, 2] by modality, piece by piece.
        present: Masks [B] by modality: which rows have such an item.
    """

    inputs: Sequence[Any]
    labels: Sequence[Mapping[str, torch.Tensor]]
    present: Sequence[Mapping[str, torch.Tensor]]


class Source(Protocol):
    """Where batches come from, and what validation measures on."""

    @property
    def pairing(self) -> Pairing:
        """What an epoch's plan is drawn from."""

    def batches(self, plan: EpochPlan, epoch: int, shares: Sequence[slice], model: torch.nn.Module) -> Iterator[Batch]:
        """The shares' batches in order, on the model's device."""

    def validate(self, model: torch.nn.Module, world: World) -> Row:
        """Metrics on the validation split, the same on every rank or only on rank 0; called on every rank."""


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

    def sum_later(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begins the sum over all workers, in place; what it gives waits for it."""
        if self.size == 1:
            return lambda: tensor
        work = torch.distributed.all_reduce(tensor, async_op=True)

        def summed() -> torch.Tensor:
            work.wait()
            return tensor

        return summed

    def first(self, value: Any) -> Any:
        """Rank 0's value, on every rank (a collective call)."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def all(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank (a collective call)."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values


WORLD_OF_ONE = World()


@dataclass
class TrainState:
    """Everything a run carries from step to step; `checkpoint.py` writes it down.

    Attributes:
        model: The towers, or backbones and towers.
        average: Moving average of its weights.
        gradients: Of what trains.
        optimizer: Moves the model.
        schedule: Learning rate by step.
        penalised: Weights and factors of their L2 penalty.
        penalties: Ridge penalties [2] by modality, from which `penalised` is made.
        epoch: Epochs done.
        done: Steps done of the epoch that is not.
        step: Steps done in all.
        sums: Loss sums and counts of those `done` steps, over all ranks.
        history: One row an epoch.
    """

    model: torch.nn.Module
    average: AveragedModel
    gradients: Gradients
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    penalised: list[tuple[torch.Tensor, torch.Tensor]]
    penalties: dict[str, list[float]]
    epoch: int = 0
    done: int = 0
    step: int = 0
    sums: StepSums = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Wishes:
    """What a rank asks of all between two steps."""

    stop: bool = False
    save: bool = False
    look: bool = False


class Watcher(Protocol):
    """Who is told of a run's progress and may ask for a save or a stop; on every rank."""

    def wishes(self) -> Wishes:
        """This rank's wishes before a step; what one rank wishes, all do after it."""

    def after_step(self, state: TrainState, wishes: Wishes) -> None:
        """Called on every rank with the wishes of all; not after an epoch's last step."""

    def after_epoch(self, state: TrainState, row: Row) -> None:
        """Called on every rank with the state and the epoch's row of the history."""


class Unwatched:
    """A watcher without wishes; others override what they need."""

    def wishes(self) -> Wishes:
        """None."""
        return Wishes()

    def after_step(self, state: TrainState, wishes: Wishes) -> None:
        """Nothing."""

    def after_epoch(self, state: TrainState, row: Row) -> None:
        """Nothing."""


UNWATCHED = Unwatched()


def steps_per_epoch(pairing: Pairing, recipe: Recipe) -> int:
    """Optimiser steps an epoch takes: the smaller side's pairs in global batches, the tail included."""
    return math.ceil(min(len(pairing.image_va_N2), len(pairing.partner_va_M2)) / recipe.batch_size)


def fit(
    state: TrainState,
    source: Source,
    recipe: Recipe,
    *,
    world: World = WORLD_OF_ONE,
    watcher: Watcher = UNWATCHED,
    stop_when: Callable[[Row], bool] = lambda _row: False,
) -> TrainState:
    """Train from where the state is to the recipe's last epoch, or until somebody wishes to stop.

    Args:
        state: Fresh or restored.
        source: Batches and validation.
        recipe: The run's recipe.
        world: This worker's place.
        watcher: Told of steps and epochs.
        stop_when: Asked with each epoch's row; True ends the run (a sweep's trial, on one rank).
    """
    while state.epoch < recipe.epochs:
        began = time.monotonic()
        if not train_epoch(state, source, recipe, world, watcher):
            return state
        row = epoch_row(state, source, recipe, world)
        state.epoch, state.done, state.sums = state.epoch + 1, 0, {}
        row |= source.validate(state.average.module, world)
        row["seconds"] = time.monotonic() - began
        state.history.append(row)
        watcher.after_epoch(state, row)
        if stop_when(row):
            return state
    return state


def train_epoch(state: TrainState, source: Source, recipe: Recipe, world: World, watcher: Watcher) -> bool:
    """The rest of an epoch's plan; whether it came to its end."""
    plan = plan_epoch(source.pairing, recipe, state.epoch)
    shares = batches(plan, recipe.batch_size, rank=world.rank, world_size=world.size)
    state.model.train()
    for batch in source.batches(plan, state.epoch, shares[state.done :], state.model):
        step_sums, wishes = train_step(state, batch, recipe, world, watcher.wishes())
        for name, (total, count) in step_sums.items():
            before = state.sums.get(name, (0.0, 0.0))
            state.sums[name] = (before[0] + total, before[1] + count)
        state.done += 1
        if state.done < len(shares):
            watcher.after_step(state, wishes)
            if wishes.stop:
                return False
    assert state.done == len(shares), "a source gives one batch a share"
    return True


def train_step(
    state: TrainState,
    share: Batch,
    recipe: Recipe,
    world: World = WORLD_OF_ONE,
    wishes: Wishes = Wishes(),
) -> tuple[StepSums, Wishes]:
    """Forward, backward, one optimiser step on the global batch of which this is the rank's share.

    Returns:
        Each loss term's sum and count over the global batch, and what any rank wished; the same on every rank.
    """
    names = tuple(recipe.loss.weights())
    counted = _global_counts(share, recipe, world, wishes)
    sums_T = next(iter(share.labels[0].values())).new_zeros(len(names), dtype=torch.float64)
    state.gradients.clear()
    for inputs, labels, present in zip(share.inputs, share.labels, share.present, strict=True):
        sums = loss_sums(state.model(inputs), labels, present, recipe.loss)
        counts_T, wishes = counted()  # on their way during the first forward pass
        torch.autograd.backward(sums.total(recipe.loss, counts_T))
        sums_T += sums.sums_T.detach().double()
    if world.size > 1:
        sums_T = state.gradients.add_up(sums_T, world.sum)
    parameters = [p for p in state.model.parameters() if p.requires_grad]
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
    return dict(zip(names, torch.stack([sums_T, counts_T], dim=1).tolist(), strict=True)), wishes


def _global_counts(
    share: Batch, recipe: Recipe, world: World, wishes: Wishes
) -> Callable[[], tuple[torch.Tensor, Wishes]]:
    """Values in each loss term over all ranks, which need no predictions; wishes travel along."""
    counts_T = torch.stack([loss_counts(present, recipe.loss) for present in share.present]).sum(dim=0)
    asked_3 = torch.tensor([wishes.stop, wishes.save, wishes.look], dtype=counts_T.dtype, device=counts_T.device)
    summed = world.sum_later(torch.cat([counts_T, asked_3]))

    def counted() -> tuple[torch.Tensor, Wishes]:
        together = summed()
        return together[:-3], Wishes(*(asked > 0 for asked in together[-3:].tolist()))

    return counted


def epoch_row(state: TrainState, source: Source, recipe: Recipe, world: World) -> Row:
    """An epoch's mean loss parts, their weighted sum as "loss", and the plan's target scores."""
    plan = plan_epoch(source.pairing, recipe, state.epoch)
    means = {name: total / max(1.0, count) for name, (total, count) in state.sums.items()}
    weights = recipe.loss.weights()
    return {
        "epoch": state.epoch,
        "step": state.step,
        "workers": world.size,
        "lr": float(state.schedule.get_last_lr()[0]),
        "pairs": len(plan.target_P),
        "loss": sum(weights[name] * mean for name, mean in means.items()),
        **means,
        "target_mean": float(plan.target_P.mean()),
        "target_histogram": [int(count) for count in score_histogram(plan.target_P)],
    }


def plan_epoch(pairing: Pairing, recipe: Recipe, epoch: int) -> EpochPlan:
    """The epoch's pairs: a pure function of labels, seed, epoch and strategy."""
    return epoch_plan(
        pairing.image_va_N2,
        pairing.partner_va_M2,
        seed=recipe.seed,
        epoch=epoch,
        strategy=recipe.strategy,
        sigma=recipe.loss.sigma,
    )

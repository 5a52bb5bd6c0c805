"""The training loop: plain PyTorch, the same with and without Ray, the same for any number of ranks.

A step is defined by its *global* batch, which every rank knows from the epoch's plan. Each rank computes its share of
every mean (its sum of errors / the global count), so the tail batch, a share without captions and even an empty share
give exactly what one rank gives. Shapes: B pairs of the share, T loss terms, S steps of an epoch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmva.errors import OperationFailed
from mmva.losses import Rows, loss_scales, loss_sums
from mmva.matching import EpochPlan, batches, epoch_plan, score_histogram
from mmva_platform.training.loop.data import Pairing
from mmva_platform.training.loop.state import WORLD_OF_ONE, Row, TrainState, World
from mmva_platform.training.recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """A rank's share of a global batch, or one piece of it under gradient accumulation; B may be 0."""

    inputs: Any  # what the model takes
    labels: Mapping[str, Tensor]  # [B, 2] by modality
    present: Mapping[str, Tensor]  # masks [B] by modality: which rows have such an item


class Source(Protocol):
    """Where batches come from, and what validation measures on."""

    @property
    def pairing(self) -> Pairing:
        """What an epoch's plan is drawn from."""

    def batches(self, plan: EpochPlan, epoch: int, shares: Sequence[slice]) -> Iterator[list[Batch]]:
        """Each share's pieces in order, on the model's device."""

    def validate(self, model: torch.nn.Module, world: World) -> Row:
        """Metrics on the validation split, at least on rank 0; called on every rank."""


class Callback(Protocol):
    """Told of a run's progress, on every rank."""

    def on_step_end(self, state: TrainState, row: Row | None) -> bool:
        """Called after each step; after an epoch's last one with its row of the history, the epoch being done.

        True stops the run, on all ranks after the same step.
        """


def train_step(state: TrainState, pieces: Sequence[Batch], scale_T: Tensor, recipe: Recipe) -> Tensor:
    """One optimizer step on the global batch of which `pieces` are this rank's share; their gradients add up.

    `scale_T` are the factors by which the loss terms' sums add up to the loss; see loss_scales. Returns each term's sum
    of squared errors over the share, [T] on the model's device: nothing waits for it.
    """
    state.optimizer.zero_grad()
    sums_T = torch.zeros_like(state.sums_T)
    for number, piece in enumerate(pieces, start=1):
        with _gradients_synced(state.parallel, last=number == len(pieces)):
            va = state.parallel(piece.inputs, hidden=recipe.loss.similarity_by == "projections")
            everyone = gathered(va, piece, recipe) if recipe.loss.similarity_over == "all" else None
            piece_sums_T = loss_sums(va, piece.labels, piece.present, recipe.loss, everyone)
            torch.autograd.backward((piece_sums_T * scale_T).sum())
        sums_T += piece_sums_T.detach()
    if recipe.optimizer.max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.moving, recipe.optimizer.max_grad_norm)
    for parameter, factor_21 in state.penalised:
        assert parameter.grad is not None
        parameter.grad.add_(factor_21 * parameter.detach())
    state.optimizer.step()
    state.schedule.step()
    state.average.update()
    state.step += 1
    return sums_T


def gathered(va: Mapping[str, Tensor], share: Batch, recipe: Recipe) -> Rows | None:
    """What towers gave, labels and masks of the global batch, without gradients; None on a single process."""
    if not torch.distributed.is_initialized() or (size := torch.distributed.get_world_size()) == 1:
        return None
    # Shares differ by one row at most in length, so each is filled up with a row that is masked.
    columns = [column for m in va for column in (va[m].detach(), share.labels[m], share.present[m][:, None])]
    own_BC = torch.cat([column.to(columns[0].dtype) for column in columns], dim=1)
    padded_BC = own_BC.new_zeros(math.ceil(recipe.batch_size / size), own_BC.shape[1])
    padded_BC[: len(own_BC)] = own_BC
    parts = [torch.empty_like(padded_BC) for _ in range(size)]
    torch.distributed.all_gather(parts, padded_BC)
    by_modality = dict(zip(va, torch.cat(parts).chunk(len(va), dim=1), strict=True))
    return Rows(
        {m: all_BC[:, :-3] for m, all_BC in by_modality.items()},
        {m: all_BC[:, -3:-1] for m, all_BC in by_modality.items()},
        {m: all_BC[:, -1] > 0 for m, all_BC in by_modality.items()},
    )


def fit(
    state: TrainState,
    source: Source,
    recipe: Recipe,
    *,
    world: World = WORLD_OF_ONE,
    callback: Callback | None = None,
) -> TrainState:
    """Train from where the state is to the recipe's last epoch, or until the callback stops it; see epoch_row."""
    while state.epoch < recipe.epochs:
        began = time.monotonic()
        plan = plan_epoch(source.pairing, recipe, state.epoch)
        if not train_epoch(state, source, recipe, plan, world=world, callback=callback):
            break
        row = epoch_row(state, source.pairing, recipe, plan, world)
        state.epoch, state.done = state.epoch + 1, 0
        state.sums_T.zero_()
        with state.average.applied():
            row |= source.validate(state.model, world)
            if recipe.checkpoint.metric in row:
                state.keep_if_best(state.epoch, row[recipe.checkpoint.metric])
        row["seconds"] = time.monotonic() - began
        state.history.append(row)
        if callback is not None and callback.on_step_end(state, row):
            break
    return state


def train_epoch(
    state: TrainState, source: Source, recipe: Recipe, plan: EpochPlan, *, world: World, callback: Callback | None
) -> bool:
    """The rest of an epoch's plan; whether it came to its end."""
    shares = batches(plan, recipe.batch_size, rank=world.rank, world_size=world.size)
    like = next(parameter for parameter in state.model.parameters() if parameter.requires_grad)
    counts_ST = torch.from_numpy(batch_counts(source.pairing, plan, recipe))
    scale_ST = loss_scales(counts_ST, recipe.loss, world.size).to(like)
    state.model.train()
    for pieces in source.batches(plan, state.epoch, shares[state.done :]):
        state.sums_T += train_step(state, pieces, scale_ST[state.done], recipe)
        state.done += 1
        if state.done < len(shares) and callback is not None and callback.on_step_end(state, None):
            return False
    assert state.done == len(shares), "a source gives one batch a share"
    return True


def batch_counts(pairing: Pairing, plan: EpochPlan, recipe: Recipe) -> NDArray[np.float64]:
    """Squared errors in each loss term of each global batch, [S, T]: a function of the plan alone."""
    present = {m: pairing.rows(m, plan.image_index_P, plan.music_index_P) >= 0 for m in pairing.modalities}
    starts = [rows.start for rows in batches(plan, recipe.batch_size)]
    counts_ST = np.zeros((len(starts), len(recipe.loss.terms())))
    for number, term in enumerate(recipe.loss.terms()):
        if all(modality in present for modality in term.modalities):
            rows = [present[modality] for modality in term.modalities]
            if recipe.loss.similarity_over == "drawn":
                rows = [np.logical_and.reduce(rows)]
            counts = [np.add.reduceat(rows_P, starts, dtype=np.int64) for rows_P in rows]
            counts_ST[:, number] = term.values * np.prod(counts, axis=0)
    return counts_ST


def epoch_row(state: TrainState, pairing: Pairing, recipe: Recipe, plan: EpochPlan, world: World) -> Row:
    """The epoch's mean loss terms so far, their weighted sum as "loss", and the plan's target scores; collective.

    OperationFailed if the loss is not finite: the run has diverged, on every rank.
    """
    sums_T = torch.stack(world.all(state.sums_T.cpu())).sum(dim=0)
    counts_T = batch_counts(pairing, plan, recipe)[: state.done].sum(axis=0)
    means = {
        term.name: total / max(1.0, count)
        for term, total, count in zip(recipe.loss.terms(), sums_T.tolist(), counts_T.tolist(), strict=True)
    }
    loss = sum(term.weight * means[term.name] for term in recipe.loss.terms())
    if not math.isfinite(loss):
        raise OperationFailed(
            f"training diverged: the loss is {loss} in epoch {state.epoch + 1}; lower optimizer.lr or media.lr, or set "
            "optimizer.max_grad_norm"
        )
    return {
        "epoch": state.epoch,
        "step": state.step,
        "workers": world.size,
        "lr": float(state.schedule.get_last_lr()[0]),
        "pairs": len(plan.target_P),
        "loss": loss,
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


def _gradients_synced(parallel: torch.nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """DDP sums gradients over the ranks once a step, after the last piece."""
    if last or not isinstance(parallel, torch.nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return parallel.no_sync()

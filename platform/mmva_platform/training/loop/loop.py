"""The training loop: plain PyTorch, with or without Ray, and with the same result for any number of ranks.

A step is defined by its *global* batch, which every rank knows from the epoch's plan. Each rank computes its share of
every mean (its sum of errors / the global count), so the last batch, a share without captions and even an empty share
give exactly the result of one rank. Shapes: B pairs of the share, T loss terms, S steps of an epoch.
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
    """A rank's share of a global batch, or a piece of it with gradient accumulation; B may be 0."""

    inputs: Any  # the argument of the model
    labels: Mapping[str, Tensor]  # [B, 2] by modality
    present: Mapping[str, Tensor]  # masks [B] by modality: which rows have such an item


class Source(Protocol):
    """Training batches and validation."""

    @property
    def pairing(self) -> Pairing:
        """The training rows, from which each epoch's plan is drawn."""

    def batches(self, plan: EpochPlan, epoch: int, shares: Sequence[slice]) -> Iterator[list[Batch]]:
        """Each share's pieces in order, on the model's device."""

    def validate(self, model: torch.nn.Module, world: World) -> Row:
        """Metrics of the validation split, at least on rank 0; called on every rank."""


class Callback(Protocol):
    """Called on every rank as a run progresses."""

    def on_step_end(self, state: TrainState, row: Row | None) -> bool:
        """Called after each step, after an epoch's last step with the epoch's row of the history.

        Returns whether to stop; all ranks must stop after the same step.
        """


def train_step(state: TrainState, pieces: Sequence[Batch], scale_T: Tensor, recipe: Recipe) -> Tensor:
    """One optimizer step on the global batch of which `pieces` are this rank's share; their gradients are added.

    `scale_T` are the weights of the loss terms' sums in the loss; see loss_scales. Returns each term's sum of squared
    errors over the share, [T] on the model's device, without waiting for the device.
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
    """Outputs of the towers, labels and masks of the global batch, without gradients; None with a single process."""
    if not torch.distributed.is_initialized() or (size := torch.distributed.get_world_size()) == 1:
        return None
    # The lengths of shares differ by one row at most, so a shorter one is padded with a masked row.
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
    state: TrainState, source: Source, recipe: Recipe, *, world: World = WORLD_OF_ONE, callback: Callback | None = None
) -> TrainState:
    """Train from the state's position to the recipe's last epoch, or until the callback stops the run."""
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
    """Train the rest of an epoch's plan; returns whether the epoch is complete."""
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
    assert state.done == len(shares), "a source gives one batch per share"
    return True


def batch_counts(pairing: Pairing, plan: EpochPlan, recipe: Recipe) -> NDArray[np.float64]:
    """Number of squared errors in each loss term of each global batch, [S, T]; depends on the plan alone."""
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
    """The epoch's mean loss terms so far, their weighted sum as "loss", and the plan's target scores.

    A collective call. Raises OperationFailed on every rank if the loss is not finite: the run has diverged.
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
    options: dict[str, Any] = {"seed": recipe.seed, "strategy": recipe.strategy, "sigma": recipe.loss.sigma}
    return epoch_plan(pairing.image_va_N2, pairing.partner_va_M2, epoch=epoch, **options)


def _gradients_synced(parallel: torch.nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """DDP sums gradients over the ranks once a step, after the last piece."""
    if last or not isinstance(parallel, torch.nn.parallel.DistributedDataParallel):
        return contextlib.nullcontext()
    return parallel.no_sync()

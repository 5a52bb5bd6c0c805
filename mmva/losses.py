"""MMVA's loss: VA regression in every modality plus regression of the matching score, all MSE.

L = w_image L_VA(image) + w_music L_VA(music) + w_caption L_VA(caption) + w_sim L_sim. The sum is known second-hand; we
infer that L_sim compares the scores of *predicted* points with those of the labels. Shapes: B pairs; row b of every
modality belongs to pair b, and a clip's caption is on the clip's row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from mmva.affect import DEFAULT_SIGMA
from mmva.config import MethodConfig
from mmva.modalities import Modality


class LossConfig(MethodConfig):
    """Weights of the loss and scale of the matching score. MMVA publishes the sum, not its weights."""

    image_weight: float = Field(1.0, ge=0, description="weight of the images' VA error. Not published; a plain sum")
    music_weight: float = Field(1.0, ge=0, description="weight of the clips' VA error. Not published; a plain sum")
    caption_weight: float = Field(1.0, ge=0, description="weight of the captions' VA error. Not published; a plain sum")
    similarity_weight: float = Field(1.0, ge=0, description="weight of L_sim. Not published; a plain sum")
    similarity_pairs: tuple[tuple[Modality, Modality], ...] = Field(
        (("image", "music"), ("image", "caption")),
        description="pairs of modalities that L_sim averages over. Not published; by default the two that an image is "
        "matched with. (music, caption) would only repeat the VA errors: the two share one label",
    )
    similarity_over: Literal["drawn", "all"] = Field(
        "drawn",
        description="not published. drawn: L_sim compares each image with the partner drawn for it. all: with every "
        "partner in the batch, since a score needs only two labels",
    )
    similarity_by: Literal["points", "projections"] = Field(
        "points",
        description="not published. points: L_sim compares the scores of predicted points, which matching uses. "
        "projections: the cosine similarity of the towers' hidden layers, so that only L_VA moves the points",
    )
    sigma: float = Field(
        DEFAULT_SIGMA, gt=0, description="scale of the matching score. MMVA's is not published; IMEMNet's for training"
    )
    distance_eps: float = Field(
        1e-6, gt=0, le=1e-2, description="smooths the distance at 0, where its gradient is undefined"
    )

    @model_validator(mode="after")
    def _pairs_differ(self) -> LossConfig:
        if any(first == second for first, second in self.similarity_pairs):
            raise ValueError("similarity_pairs must join two different modalities")
        if self.similarity_weight > 0 and not self.similarity_pairs:
            raise ValueError("similarity_pairs is empty; set similarity_weight to 0 to train without L_sim")
        return self

    def terms(self) -> tuple[Term, ...]:
        """The terms of the sum, in a fixed order; L_sim is the mean over its pairs."""
        va = {"image": self.image_weight, "music": self.music_weight, "caption": self.caption_weight}
        terms = [Term(f"va/{modality}", (modality,), weight) for modality, weight in va.items()]
        for first, second in self.similarity_pairs:
            weight = self.similarity_weight / len(self.similarity_pairs)
            terms.append(Term(f"sim/{first}-{second}", (first, second), weight))
        return tuple(terms)


class Term(NamedTuple):
    """One mean squared error: of VA points if it has one modality, of matching scores if it has two."""

    name: str
    modalities: tuple[str, ...]
    weight: float

    @property
    def values(self) -> int:
        """Number of squared errors per row: two axes, or one score."""
        return 2 if len(self.modalities) == 1 else 1


class Rows(NamedTuple):
    """Rows of a batch by modality: the towers' output (see loss_sums), labels [B, 2] and masks [B]."""

    va: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    present: Mapping[str, Tensor]


def score(va_a_B2: Tensor, va_b_B2: Tensor, sigma: float, eps: float = 1e-6) -> Tensor:
    """Differentiable matching score in (0, 1], [B]: exp(-d / sigma); its gradient is 0 where d is 0.

    d = sqrt(|a - b|^2 + eps^2) - eps differs from the Euclidean distance by less than eps, and is 0 for equal points.
    """
    squared_B = (va_a_B2 - va_b_B2).square().sum(dim=-1)
    return torch.exp(-(torch.sqrt(squared_B + eps * eps) - eps) / sigma)


def loss_sums(
    va: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None,
    config: LossConfig,
    everyone: Rows | None = None,
) -> Tensor:
    """Sum of squared errors of each term over a batch of pairs, [T] in the order of LossConfig.terms().

    Pairs may be incomplete: a term counts the rows that have its items. The terms of a modality that is not in `va`
    are 0.

    Args:
        va: Predicted VA points [B, 2] by modality; B may be 0. With similarity_by "projections" [B, 2 + H]: the
            tower's hidden layer beside the point.
        labels: Labels [B, 2] of the same modalities. A caption's label is its clip's.
        present: Masks [B] by modality, True where the row has such an item; a modality without a mask is complete.
        config: Weights, pairs and sigma.
        everyone: The rows of the global batch, without gradients; for similarity_over "all" on several processes.
    """
    some = next(iter(va.values()))
    keep = _masks(va, present)
    sums = []
    for term in config.terms():
        if not all(modality in va for modality in term.modalities):
            sums.append(some.new_zeros(()))
            continue
        if len(term.modalities) == 1:
            (modality,) = term.modalities
            squared_B = (va[modality][:, :2] - labels[modality]).square().sum(dim=-1)
        elif config.similarity_over == "all":
            sums.append(_all_pairs(term, Rows(va, labels, keep), everyone, config))
            continue
        else:
            first, second = term.modalities
            wanted_B = score(labels[first], labels[second], config.sigma, config.distance_eps)
            squared_B = (_similarity(va[first], va[second], config, crossed=False) - wanted_B).square()
        kept_B = torch.stack([keep[modality] for modality in term.modalities]).all(dim=0)
        # torch.where, not a product: a masked row has no embedding and may hold NaN, and NaN * 0 is NaN.
        sums.append(torch.where(kept_B, squared_B, 0.0).sum())
    return torch.stack(sums)


def _all_pairs(term: Term, here: Rows, everyone: Rows | None, config: LossConfig) -> Tensor:
    """Sum of the squared errors of all scores between this process's rows and all rows.

    Over all processes each pair counts once, and each of its points gets its gradient on the process that holds it.
    """
    if everyone is None:
        return _crossed(term, here, here, config)
    theirs = _crossed(term, everyone, here, config)
    return _crossed(term, here, everyone, config) + theirs - theirs.detach()


def _crossed(term: Term, a: Rows, b: Rows, config: LossConfig) -> Tensor:
    first, second = term.modalities
    predicted_AB = _similarity(a.va[first], b.va[second], config, crossed=True)
    wanted_AB = score(a.labels[first][:, None], b.labels[second], config.sigma, config.distance_eps)
    kept_AB = a.present[first][:, None] & b.present[second]
    return torch.where(kept_AB, (predicted_AB - wanted_AB).square(), 0.0).sum()


def _similarity(a_AK: Tensor, b_BK: Tensor, config: LossConfig, *, crossed: bool) -> Tensor:
    """Predicted similarity of rows of two modalities: row by row [B], or, if crossed, of all combinations [A, B]."""
    if config.similarity_by == "projections":
        a_AH, b_BH = (normalize(rows[:, 2:], dim=-1) for rows in (a_AK, b_BK))
        return a_AH @ b_BH.T if crossed else (a_AH * b_BH).sum(dim=-1)
    a_A2, b_B2 = a_AK[:, :2], b_BK[:, :2]
    return score(a_A2[:, None] if crossed else a_A2, b_B2, config.sigma, config.distance_eps)


def loss_counts(present: Mapping[str, Tensor], config: LossConfig) -> Tensor:
    """Number of squared errors in each term of loss_sums, float64 [T], from the masks [B] by modality."""
    none = next(iter(present.values())).new_zeros((), dtype=torch.int64)
    counts = [
        _count([present[modality] for modality in term.modalities], config) * term.values
        if all(modality in present for modality in term.modalities)
        else none
        for term in config.terms()
    ]
    return torch.stack(counts).double()


def _count(present: list[Tensor], config: LossConfig) -> Tensor:
    if config.similarity_over == "all":
        return torch.stack([mask_B.sum() for mask_B in present]).prod()
    return torch.stack(present).all(dim=0).sum()


def loss_scales(counts_T: Tensor, config: LossConfig, world_size: int = 1) -> Tensor:
    """Factors [..., T] with which the terms of loss_sums add up to the loss; 0 for a term without values.

    On several processes, pass the counts of the global batch and the number of processes. DDP's average of the
    gradients of (loss_sums * loss_scales).sum() over the ranks then equals the gradient of one process with the whole
    batch, however unequally rows and captions are distributed. The mean of this value over the ranks is the loss.
    """
    weight_T = torch.tensor([term.weight for term in config.terms()], dtype=torch.float64, device=counts_T.device)
    return torch.where(counts_T > 0, weight_T / counts_T.clamp(min=1), 0.0) * world_size


def mmva_loss(
    va: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None = None,
    config: LossConfig | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """MMVA's loss of a batch on one process, and the unweighted mean of each term; shapes as in loss_sums."""
    config = config or LossConfig()
    sums_T = loss_sums(va, labels, present, config)
    counts_T = loss_counts(_masks(va, present), config)
    means_T = sums_T.detach().double() / counts_T.clamp(min=1)
    names = [term.name for term in config.terms()]
    total = (sums_T * loss_scales(counts_T, config).to(sums_T.dtype)).sum()
    return total, dict(zip(names, means_T.tolist(), strict=True))


def _masks(va: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    some = next(iter(va.values()))
    everywhere_B = torch.ones(len(some), dtype=torch.bool, device=some.device)
    return {modality: (present or {}).get(modality, everywhere_B) for modality in va}

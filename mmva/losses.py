"""MMVA's loss: VA regression in every modality plus regression of the matching score, all MSE.

L = w_image L_VA(image) + w_music L_VA(music) + w_caption L_VA(caption) + w_sim L_sim (method as published, second-hand;
that L_sim compares the scores of *predicted* points with the labels' is inferred). Shapes: B pairs; row b of every
modality belongs to pair b, and a clip's caption stands on the clip's row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmva.affect import DEFAULT_SIGMA
from mmva.config import MethodConfig
from mmva.modalities import Modality


class LossConfig(MethodConfig):
    """Weights and the matching score's scale. MMVA publishes the sum, not its weights."""

    image_weight: float = Field(1.0, ge=0, description="weight of the images' VA error. Not published; a plain sum")
    music_weight: float = Field(1.0, ge=0, description="weight of the clips' VA error. Not published; a plain sum")
    caption_weight: float = Field(1.0, ge=0, description="weight of the captions' VA error. Not published; a plain sum")
    similarity_weight: float = Field(1.0, ge=0, description="weight of L_sim. Not published; a plain sum")
    similarity_pairs: tuple[tuple[Modality, Modality], ...] = Field(
        (("image", "music"), ("image", "caption")),
        description="which scores L_sim averages over. Not published; both kinds of partner that an image is matched "
        "with. (music, caption) would only repeat the VA errors: the two share one label",
    )
    sigma: float = Field(
        DEFAULT_SIGMA, gt=0, description="scale of the matching score. MMVA's is not published; IMEMNet's for training"
    )
    distance_eps: float = Field(
        1e-6, gt=0, le=1e-2, description="rounds off the distance's kink at 0, where its gradient is not defined"
    )

    @model_validator(mode="after")
    def _pairs_differ(self) -> LossConfig:
        if any(first == second for first, second in self.similarity_pairs):
            raise ValueError("similarity_pairs must join two different modalities")
        if self.similarity_weight > 0 and not self.similarity_pairs:
            raise ValueError("similarity_pairs is empty; set similarity_weight to 0 to train without L_sim")
        return self

    def weights(self) -> dict[str, float]:
        """Weight of each term's mean in the total; L_sim is the mean over its pairs."""
        weights = {
            "va/image": self.image_weight,
            "va/music": self.music_weight,
            "va/caption": self.caption_weight,
        }
        for first, second in self.similarity_pairs:
            weights[f"sim/{first}-{second}"] = self.similarity_weight / len(self.similarity_pairs)
        return weights


@dataclass(frozen=True)
class LossSums:
    """Sums of squared errors and how many values each sums; what makes a mean over unequal ranks exact.

    Attributes:
        names: The T terms, in the order of LossConfig.weights().
        sums_T: Sum of squared errors of each term on this rank; carries the gradient.
        counts_T: Number of squared errors in each sum (two a row for VA terms), float64.
    """

    names: tuple[str, ...]
    sums_T: Tensor
    counts_T: Tensor

    def total(self, config: LossConfig, counts_T: Tensor | None = None, world_size: int = 1) -> Tensor:
        """The loss to call backward on.

        On one process leave the defaults. On several, add up counts_T over the ranks (all_reduce, no gradient) and
        pass the result with the world size: DDP then averages the ranks' gradients to exactly those that one process
        has for the whole batch, however unequally its rows and captions fell on the ranks. The loss to *report* is the
        mean of this value over ranks. A term without any value contributes 0.
        """
        counts = self.counts_T if counts_T is None else counts_T
        scale_T = torch.as_tensor(list(config.weights().values()), dtype=torch.float64, device=counts.device)
        scale_T = torch.where(counts > 0, scale_T / counts.clamp(min=1), 0.0) * world_size
        return (self.sums_T * scale_T.to(self.sums_T.dtype)).sum()

    def means(self) -> dict[str, float]:
        """Each term's unweighted mean; 0 for a term without any value."""
        values = self.sums_T.detach().double() / self.counts_T.clamp(min=1)
        return dict(zip(self.names, values.tolist(), strict=True))


def score(va_a_B2: Tensor, va_b_B2: Tensor, sigma: float, eps: float = 1e-6) -> Tensor:
    """Differentiable matching score in (0, 1], [B]: exp(-d / sigma), its gradient 0 where d is 0.

    d = sqrt(|a - b|^2 + eps^2) - eps differs from the Euclidean distance by less than eps and is 0 where that is.
    """
    squared_B = (va_a_B2 - va_b_B2).square().sum(dim=-1)
    return torch.exp(-(torch.sqrt(squared_B + eps * eps) - eps) / sigma)


def loss_sums(
    va: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None,
    config: LossConfig,
) -> LossSums:
    """Every term's sum of squared errors and its count over a batch of pairs.

    A pair need not be complete: a term counts the rows whose items are there, and a modality that is not in `va` at all
    leaves its terms without a value.

    Args:
        va: Predicted VA points [B, 2] by modality; B may be 0.
        labels: Labels [B, 2] of the same modalities. A caption's label is its clip's.
        present: Masks [B] by modality, True where the row has such an item; a modality without a mask has all of them.
        config: Weights, pairs and sigma.
    """
    some = next(iter(va.values()))
    everywhere_B = torch.ones(len(some), dtype=torch.bool, device=some.device)
    keep = {modality: (present or {}).get(modality, everywhere_B) for modality in va}
    sums = []
    for name in config.weights():
        kind, modalities, kept_B = _term(name, keep)
        if kept_B is None:
            sums.append(some.new_zeros(()))
            continue
        if kind == "va":
            squared_B = (va[modalities[0]] - labels[modalities[0]]).square().sum(dim=-1)
        else:
            predicted_B, wanted_B = (
                score(points[modalities[0]], points[modalities[1]], config.sigma, config.distance_eps)
                for points in (va, labels)
            )
            squared_B = (predicted_B - wanted_B).square()
        # torch.where, not a product: a masked row may hold NaN (there is nothing to embed), and NaN * 0 is NaN.
        sums.append(torch.where(kept_B, squared_B, 0.0).sum())
    return LossSums(tuple(config.weights()), torch.stack(sums), loss_counts(keep, config))


def loss_counts(present: Mapping[str, Tensor], config: LossConfig) -> Tensor:
    """LossSums.counts_T of a batch, which needs no predictions: float64 [T].

    Args:
        present: Masks [B] of all modalities of the batch; see loss_sums.
        config: Names the terms.
    """
    counts = []
    for name in config.weights():
        kind, _, kept_B = _term(name, present)
        counts.append(None if kept_B is None else kept_B.sum() * (2 if kind == "va" else 1))
    none = next(iter(present.values())).new_zeros((), dtype=torch.int64)
    return torch.stack([none if count is None else count for count in counts]).double()


def _term(name: str, present: Mapping[str, Tensor]) -> tuple[str, list[str], Tensor | None]:
    """A term's kind ("va" or "sim"), its modalities, and the rows [B] that have them all; None if one is missing."""
    kind, _, subject = name.partition("/")
    modalities = subject.split("-")
    if not all(modality in present for modality in modalities):
        return kind, modalities, None
    return kind, modalities, torch.stack([present[modality] for modality in modalities]).all(dim=0)


def mmva_loss(
    va: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None = None,
    config: LossConfig | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """MMVA's loss of a batch on one process, and the unweighted mean of each of its terms.

    See loss_sums for shapes; several processes combine LossSums instead.
    """
    config = config or LossConfig()
    sums = loss_sums(va, labels, present, config)
    return sums.total(config), sums.means()

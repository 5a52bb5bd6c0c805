"""Backbones and towers as one trainable module: which layers train, what is recomputed, in which precision.

Towers start as probes on stored embeddings, backbones as loaded. Backbones stay in evaluation mode: no dropout, and
BatchNorm keeps its statistics. So a step has the same result for any number of workers and pieces, and serving computes
what was trained. Shapes: B rows, D a backbone's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmva.errors import UsageError
from mmva.models.model import MMVA
from mmva_platform.training.loop.data import triplets
from mmva_platform.training.loop.probe import start_from_probes
from mmva_platform.training.loop.state import TrainState, World, build_model, make_state, model_config
from mmva_platform.training.media.items import MediaPairing
from mmva_platform.training.recipe import Recipe

if TYPE_CHECKING:
    from mmva.backbones import Encoder
    from mmva_platform.datasets.features import Features

Groups = list[tuple[Tensor, dict[str, Tensor]]]


class TunedMMVA(nn.Module):
    """Encoders followed by MMVA's towers."""

    def __init__(self, mmva: MMVA, encoders: Mapping[str, Encoder], *, bf16: bool) -> None:
        super().__init__()
        self.mmva = mmva
        self.encoders = nn.ModuleDict(encoders)
        self._bf16 = bf16
        self.train()

    def train(self, mode: bool = True) -> TunedMMVA:  # noqa: FBT001, FBT002 - torch's signature
        """Only the towers have a training mode."""
        super().train(mode)
        self.encoders.eval()
        return self

    def forward(self, inputs: Mapping[str, tuple[int, Groups]], *, hidden: bool = False) -> dict[str, Tensor]:
        """As MMVA.forward, for collated groups of rows; rows without an item get an arbitrary point."""
        emb = {modality: self.embed(modality, rows, groups) for modality, (rows, groups) in inputs.items()}
        points: dict[str, Tensor] = self.mmva(emb, hidden=hidden)
        return points

    def embed(self, modality: str, rows: int, groups: Groups) -> Tensor:
        """Embeddings [B, D] of grouped inputs, in the towers' precision; zero for rows without an item."""
        encoder = self.encoders[modality]
        like = next(self.mmva.parameters())
        emb_BD = torch.zeros(rows, self.mmva.tower(modality).dim, device=like.device)
        trains = any(parameter.requires_grad for parameter in encoder.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            for row_G, batch in groups:
                inputs = encoder.finish(batch)  # type: ignore[operator] # an Encoder
                with torch.autocast(like.device.type, torch.bfloat16, enabled=self._bf16):
                    emb_GD = encoder(**inputs)
                emb_BD = emb_BD.index_copy(0, row_G, emb_GD.float())
        return emb_BD.to(like.dtype)


@dataclass(frozen=True)
class Heads:
    """The start of the towers."""

    dims: dict[str, int]  # width by modality
    weights: dict[str, Tensor]  # the towers' state
    penalties: dict[str, list[float]]  # ridge penalties [2] by modality


def start_heads(features: Features, recipe: Recipe) -> Heads:
    """Statistics and probes from stored embeddings of the untuned backbones, or a sample of them.

    Tuning backbones under random heads would first distort their features (Kumar et al., ICLR 2022). Raises UsageError
    if a modality has no entry in media.layers or media.lr, or no validation rows.
    """
    options = recipe.media
    if missing := [m for m in features.modalities if m not in options.layers or m not in options.lr]:
        raise UsageError(f"media.layers and media.lr: {missing[0]!r} is missing; name every modality of the dataset")
    train, val = triplets(features, "train"), triplets(features, "val")
    model = build_model(recipe, train)
    ridge = recipe.optimizer.ridge
    dims = {str(modality): dim for modality, dim in model.dims.items()}
    penalties = start_from_probes(model, train, val) if ridge == "auto" else dict.fromkeys(dims, [ridge] * 2)
    return Heads(dims, model.state_dict(), penalties)


def tuned_model(heads: Heads, recipe: Recipe, encoders: Mapping[str, Encoder], device: torch.device) -> TunedMMVA:
    """Loaded backbones, of which the chosen layers train, and towers. Raises as choose_layers."""
    options = recipe.media
    mmva = MMVA(heads.dims, model_config(recipe))
    mmva.load_state_dict(heads.weights)
    for modality, encoder in encoders.items():
        layers = options.layers[modality]  # type: ignore[index] # a modality
        choose_layers(encoder, layers)
        if options.recompute and layers != 0:
            recompute_blocks(encoder)
        if options.compile:
            encoder.network.compile()
    return TunedMMVA(mmva, encoders, bf16=options.bf16 and device.type == "cuda").to(device)


def media_state(
    model: TunedMMVA, recipe: Recipe, train: MediaPairing, penalties: dict[str, list[float]], world: World
) -> TrainState:
    """The state at the start of a run; each backbone has its own learning rate."""
    groups: list[dict[str, Any]] = []
    for modality, encoder in model.encoders.items():
        moving = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        if moving:
            groups.append({"params": moving, "lr": recipe.media.lr[modality]})  # type: ignore[index]
    rows = {modality: len(items) for modality, items in train.items.items()}
    return make_state(model, model.mmva, recipe, train, penalties, rows=rows, world=world, more=groups)


def choose_layers(encoder: Encoder, layers: int | Literal["all"]) -> None:
    """Unfreeze the last blocks and the layers after them; 0: nothing. Raises UsageError if there are fewer blocks."""
    encoder.network.requires_grad_(requires_grad=layers == "all")
    if layers in {0, "all"}:
        return
    assert isinstance(layers, int)
    blocks, after = encoder.blocks()
    if layers > len(blocks):
        raise UsageError(
            f"media.layers: {layers} is more than the {len(blocks)} blocks of {type(encoder.network).__name__}"
        )
    for module in [*blocks[-layers:], *after]:
        module.requires_grad_(requires_grad=True)


def recompute_blocks(encoder: Encoder) -> None:
    """Gradient checkpointing: blocks that train keep no activations and recompute them in the backward pass."""
    for block in encoder.blocks()[0]:
        moves = any(parameter.requires_grad for parameter in block.parameters())
        if moves and type(block).forward is not nn.Module.forward:  # a list of modules has no forward
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

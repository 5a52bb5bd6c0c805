"""A media run's state and source on one rank: towers that start as probes, backbones that start as they were loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmva.backbones import BackboneSpec
from mmva.errors import UsageError
from mmva.model import MMVA, ModelConfig
from mmva_platform.training.build import build_model, build_optimizer, make_state, penalty_gradients
from mmva_platform.training.data import triplets
from mmva_platform.training.loop import TrainState, World
from mmva_platform.training.media.items import MediaPairing
from mmva_platform.training.media.tuned import TunedMMVA, choose_layers, recompute_blocks
from mmva_platform.training.probe import start_from_probes
from mmva_platform.training.recipe import Recipe

if TYPE_CHECKING:
    from mmva.backbones import Encoder
    from mmva_platform.datasets.embedder import EncoderLoader
    from mmva_platform.datasets.features import Features


@dataclass(frozen=True)
class Heads:
    """Where the towers start.

    Attributes:
        dims: Width by modality.
        weights: The towers' state.
        penalties: Ridge penalties [2] by modality.
    """

    dims: dict[str, int]
    weights: dict[str, torch.Tensor]
    penalties: dict[str, list[float]]


def start_heads(features: Features, recipe: Recipe) -> Heads:
    """Statistics and probes from stored embeddings of the untuned backbones, or of a sample of them.

    Starting the backbones under random heads would first destroy what they know (Kumar et al., ICLR 2022).

    Raises:
        UsageError: If a modality has no entry in media.layers or media.lr, or validation lacks one.
    """
    options = recipe.media
    if missing := [m for m in features.modalities if m not in options.layers or m not in options.lr]:
        raise UsageError(f"media.layers and media.lr: {missing[0]!r} is missing; name every modality of the dataset")
    train, val = triplets(features, "train"), triplets(features, "val")
    model = build_model(recipe, train)
    ridge = recipe.optimizer.ridge
    penalties = start_from_probes(model, train, val) if ridge == "auto" else dict.fromkeys(model.dims, [ridge] * 2)
    return Heads(
        {str(m): dim for m, dim in model.dims.items()}, model.state_dict(), {str(m): p for m, p in penalties.items()}
    )


def tuned_model(
    heads: Heads, recipe: Recipe, specs: Mapping[str, Mapping[str, Any]], load: EncoderLoader, device: torch.device
) -> TunedMMVA:
    """Loaded backbones, the chosen layers free to move, under the towers.

    Raises:
        UsageError: If a backbone has fewer blocks than are to train.
    """
    options = recipe.media
    mmva = MMVA(heads.dims, ModelConfig(**recipe.model.model_dump(), sigma=recipe.loss.sigma))
    mmva.load_state_dict(heads.weights)
    encoders: dict[str, Encoder] = {}
    for modality in mmva.dims:
        encoder = load(BackboneSpec.from_json(dict(specs[modality])))
        choose_layers(encoder.network, options.layers[modality])
        if options.recompute and options.layers[modality] != 0:
            recompute_blocks(encoder.network)
        encoders[modality] = encoder
    bf16 = options.bf16 and device.type == "cuda"
    return TunedMMVA(mmva, encoders, bf16=bf16).to(device)


def media_state(
    model: TunedMMVA,
    recipe: Recipe,
    train: MediaPairing,
    penalties: dict[str, list[float]],
    world: World,
) -> TrainState:
    """The state to start with or restore into; each backbone moves at its own rate."""
    groups: list[dict[str, Any]] = [{"params": list(model.mmva.parameters())}]
    for modality, encoder in model.encoders.items():
        moving = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        if moving:
            groups.append({"params": moving, "lr": recipe.media.lr[modality]})  # type: ignore[index]
    rows = {modality: len(items) for modality, items in train.items.items()}
    penalised = penalty_gradients(model.mmva, rows, penalties)
    optimizer = build_optimizer(groups, recipe.optimizer)
    return make_state(optimizer, recipe, train, world, module=model, penalised=penalised, penalties=penalties)

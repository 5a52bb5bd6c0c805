"""Backbones and towers as one module that trains: which layers move, what is recomputed, in which precision.

Backbones stay in evaluation mode: no dropout, and BatchNorm keeps its statistics. So the same step comes out for any
number of workers and pieces, and what was trained is what is served. Shapes: B rows, D a backbone's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmva.engines.fronts import batches
from mmva.errors import UsageError
from mmva.model import MMVA

if TYPE_CHECKING:
    from mmva.backbones import Encoder
    from mmva_platform.training.media.decoding import Inputs

Groups = list[tuple[Tensor, dict[str, Tensor]]]


class TunedMMVA(nn.Module):
    """Encoders before MMVA's towers.

    Attributes:
        mmva: The towers.
        encoders: By modality.
    """

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

    def forward(self, inputs: Mapping[str, tuple[int, Groups]]) -> dict[str, Tensor]:
        """VA points [B, 2] by modality of inputs (see groups_of); rows without an item get some point or other."""
        return {
            modality: self.mmva.towers[modality](self.embed(modality, rows, groups))
            for modality, (rows, groups) in inputs.items()
        }

    def embed(self, modality: str, rows: int, groups: Groups) -> Tensor:
        """Embeddings [B, D] of grouped inputs, float32; zero where a row has none."""
        encoder = self.encoders[modality]
        device = next(self.mmva.parameters()).device
        emb_BD = torch.zeros(rows, self.mmva.tower(modality).dim, device=device)
        trains = any(parameter.requires_grad for parameter in encoder.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            for row_G, batch in groups:
                with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
                    emb_GD = encoder(**{name: tensor.to(device) for name, tensor in batch.items()})
                emb_BD = emb_BD.index_copy(0, row_G.to(device), emb_GD.float())
        return emb_BD.to(next(self.mmva.parameters()).dtype)

    def groups_of(self, modality: str, prepared: Sequence[Inputs | None]) -> tuple[int, Groups]:
        """Rows that may share a batch, collated, as the encoder's own `encode` would."""
        encoder: Any = self.encoders[modality]
        rows = [row for row, item in enumerate(prepared) if item is not None]
        items = [
            {name: torch.from_numpy(array) for name, array in item.items()} for item in prepared if item is not None
        ]
        keys = [encoder.batch_key(item) for item in items]
        sizes = [sum(tensor.numel() for tensor in item.values()) for item in items]
        return len(prepared), [
            (torch.tensor([rows[i] for i in chosen]), encoder.collate([items[i] for i in chosen]))
            for chosen in batches(keys, sizes, encoder.max_batch_elements)
        ]


def blocks_of(network: nn.Module) -> nn.ModuleList:
    """A network's repeated blocks: its longest list of modules.

    Raises:
        UsageError: If there is no such list; only "all" layers can be trained then.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    if not lists:
        raise UsageError(f"media.layers: {type(network).__name__} has no list of blocks; use 0 or all")
    return max(lists, key=len)


def choose_layers(network: nn.Module, layers: int | Literal["all"]) -> None:
    """Let the last blocks train and what comes after them; 0 for nothing, "all" for everything.

    Raises:
        UsageError: If the network has fewer blocks.
    """
    network.requires_grad_(requires_grad=layers == "all")
    if layers in {0, "all"}:
        return
    assert isinstance(layers, int)
    blocks = blocks_of(network)
    if layers > len(blocks):
        raise UsageError(f"media.layers: {layers} of {type(network).__name__}'s {len(blocks)} blocks")
    chosen = {id(parameter) for block in blocks[-layers:] for parameter in block.parameters()}
    last = {id(parameter) for parameter in blocks[-1].parameters()}
    past = False
    for parameter in network.parameters():
        past = past or id(parameter) in last
        parameter.requires_grad_(past or id(parameter) in chosen)


def recompute_blocks(network: nn.Module) -> None:
    """Gradient checkpointing: keep no activations inside blocks that train, compute them again in the backward pass."""
    for block in blocks_of(network):
        if any(parameter.requires_grad for parameter in block.parameters()):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)

"""The trainable part of a tower: a backbone's embedding in, a VA point out.

Shapes: B items, D embedding width, H hidden width. MMVA publishes neither the heads' size nor their activation; such
unknowns are options of TowerConfig, with reasons.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmva.models.config import TowerConfig

__all__ = ["Tower", "TowerConfig"]

_SMALLEST_STD = 1e-6
_PIECE = 65_536


class Tower(nn.Module):
    """Standardised embedding -> sigmoid(linear path + residual MLP) = VA point in [0, 1].

    With the linear path, training can start from a ridge regression on the same features; the MLP starts at zero and
    adds the non-linear part. Its weights start at N(0, 1) with factors of 1/sqrt(width) (the NTK parametrisation, Jacot
    et al. 2018): Adam's steps have one size for all weights, and without the factors a wide MLP fits the noise of a
    thousand items before the linear path has found their trend. `head: mlp` has no linear path and no factors.

    The sigmoid keeps outputs in [0, 1] with a gradient everywhere; a clamp has no gradient for clipped items. Labels
    only use the nearly straight middle of the sigmoid.
    """

    mean_D: Tensor
    std_D: Tensor

    def __init__(self, dim: int, config: TowerConfig | None = None) -> None:
        super().__init__()
        self.config = config or TowerConfig()
        self.dim = dim
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("std_D", torch.ones(dim))
        self.input_dropout = nn.Dropout(self.config.input_dropout)
        self.projection: nn.Linear | None = None
        plain = self.config.head == "mlp"
        if not plain:
            self.linear = nn.Linear(dim, 2)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        if self.config.hidden:
            self.projection = nn.Linear(dim, self.config.hidden)
            if not plain:
                nn.init.normal_(self.projection.weight)
                nn.init.zeros_(self.projection.bias)
            self.dropout = nn.Dropout(self.config.dropout)
            self.head = nn.Linear(self.config.hidden, 2, bias=plain)
            if not plain:
                nn.init.zeros_(self.head.weight)

    @torch.no_grad()
    def set_statistics(self, emb_ND: Tensor | NDArray[np.floating]) -> None:
        """Set the standardisation from the training split's embeddings [N, D], N >= 1; it is saved with the weights.

        Constant dimensions have a scale of 1. Raises ValueError if the shape does not fit the tower or a value is not
        finite.
        """
        emb = np.asarray(emb_ND)
        if emb.ndim != 2 or emb.shape[0] == 0 or emb.shape[1] != self.dim:
            raise ValueError(f"embeddings must have shape [N, {self.dim}] with N >= 1, got {list(emb.shape)}")
        # In pieces, because a million rows in double precision would need too much memory.
        pieces = [slice(start, start + _PIECE) for start in range(0, len(emb), _PIECE)]
        mean_D = sum(emb[rows].sum(axis=0, dtype=np.float64) for rows in pieces) / len(emb)
        variance_D = sum(np.square(emb[rows] - mean_D).sum(axis=0) for rows in pieces) / len(emb)
        mean_D, std_D = torch.from_numpy(mean_D), torch.from_numpy(np.sqrt(variance_D))
        if not bool(torch.isfinite(std_D).all()):
            raise ValueError("embeddings contain NaN or infinite values")
        self.mean_D.copy_(mean_D)
        self.std_D.copy_(torch.where(std_D < _SMALLEST_STD, torch.ones_like(std_D), std_D))

    def standardise(self, emb_BD: Tensor) -> Tensor:
        """Embeddings [B, D] standardised by the training split's mean and deviation, then clipped to +-clip."""
        return ((emb_BD - self.mean_D) / self.std_D).clamp(-self.config.clip, self.config.clip)

    def forward(self, emb_BD: Tensor, *, hidden: bool = False) -> Tensor:
        """VA points in [0, 1], shape [B, 2], of embeddings [B, D]; B may be 0.

        With `hidden`, shape [B, 2 + H]: followed by the hidden layer, which a loss may compare between modalities.
        """
        z_BD = self.input_dropout(self.standardise(emb_BD))
        plain = self.config.head == "mlp"
        logit_B2: Tensor = z_BD.new_zeros(()) if plain else self.linear(z_BD)
        if self.projection is None:
            return torch.sigmoid(logit_B2)
        activate = getattr(nn.functional, self.config.activation)
        hidden_BH = activate(self.projection(z_BD if plain else z_BD * self.dim**-0.5))
        added_B2 = self.head(self.dropout(hidden_BH)) * (1.0 if plain else self.config.hidden**-0.5)
        va_B2 = torch.sigmoid(logit_B2 + added_B2)
        return torch.cat([va_B2, hidden_BH], dim=1) if hidden else va_B2

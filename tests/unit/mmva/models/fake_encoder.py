"""An encoder small enough to reason about: the mean and the extremes of whatever numbers an item holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmva.backbones import BackboneSpec


class FakeEncoder(torch.nn.Module):
    """Stands where mmva.backbones.Encoder does in tests that are not about encoders."""

    def __init__(self, modality: str = "image", fingerprint: str = "f" * 64, dim: int = 3) -> None:
        super().__init__()
        self.spec = BackboneSpec(modality=modality, family=f"tiny-{modality}", source="random:0")
        self.modality = modality
        self.fingerprint = fingerprint
        self.dim = dim
        self.preprocessing = {"mean": [0.5, 0.25], "size": 8}
        self.weight = torch.nn.Parameter(torch.ones(1))

    def encode(self, items: Sequence[Any], batch_size: int = 16) -> np.ndarray:
        rows = [[np.mean(item), np.max(item), np.min(item)][: self.dim] for item in items]
        return np.asarray(rows, np.float32).reshape(len(items), self.dim)

"""MMVA: three towers over frozen backbones, one VA plane.

Shapes: B or N items, D a backbone's embedding width (its own per modality), va_*2 is (valence, arousal) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmva.errors import CheckFailed, UsageError
from mmva.modalities import MODALITIES
from mmva.models.config import ModelConfig
from mmva.models.towers import Tower

if TYPE_CHECKING:
    from mmva.backbones import Encoder

__all__ = ["MMVA", "ModelConfig"]

_EMBEDDING_BATCH = 4096


class MMVA(nn.Module):
    """Towers by modality. Attached backbones are not part of the model's parameters or state.

    Attributes:
        dims: Embedding width of each modality.
        backbones: {modality: {"spec", "fingerprint", "dim"}} of the encoders that the towers were trained on.
        preprocessing: {modality: JSON-able description} of the same encoders.
        intervals: {modality: {"valence", "arousal"}} half widths of the conformal intervals.
        provenance: Origin of the model (run, recipe, dataset digest), JSON-able.
        digest: The bundle's digest; None for a model that was not loaded from a bundle.
    """

    def __init__(self, dims: Mapping[str, int], config: ModelConfig | None = None) -> None:
        """Make an untrained tower for each modality in `dims`.

        Raises UsageError for an unknown modality or a width below 1.
        """
        super().__init__()
        for modality, dim in dims.items():
            if modality not in MODALITIES or dim < 1:
                raise UsageError(
                    f"model: no tower for {modality!r} of width {dim}; use a width above 0 for {', '.join(MODALITIES)}"
                )
        self.config = config or ModelConfig()
        self.dims = {modality: int(dims[modality]) for modality in MODALITIES if modality in dims}
        self.towers = nn.ModuleDict({modality: Tower(dim, self.config) for modality, dim in self.dims.items()})
        self.backbones: dict[str, dict[str, Any]] = {}
        self.preprocessing: dict[str, dict[str, Any]] = {}
        self.intervals: dict[str, dict[str, float]] = {}
        self.provenance: dict[str, Any] = {}
        self.digest: str | None = None
        self._encoders: dict[str, Encoder] = {}

    def forward(self, embeddings: Mapping[str, Tensor], *, hidden: bool = False) -> dict[str, Tensor]:
        """VA points [B, 2] of embeddings [B, D] for some of the modalities; `hidden` as in Tower.forward."""
        return {modality: self.towers[modality](emb_BD, hidden=hidden) for modality, emb_BD in embeddings.items()}

    @torch.no_grad()
    def set_statistics(self, embeddings: Mapping[str, NDArray[np.floating] | Tensor]) -> None:
        """Standardise each tower's input by its training split's embeddings [N, D]."""
        for modality, emb_ND in embeddings.items():
            self.tower(modality).set_statistics(emb_ND)

    def tower(self, modality: str) -> Tower:
        """The tower of a modality. Raises UsageError if the model has none."""
        if modality not in self.dims:
            raise UsageError(f"this model has no {modality!r} tower; it has {', '.join(self.dims)}")
        tower = self.towers[modality]
        assert isinstance(tower, Tower)
        return tower

    def attach_encoders(self, encoders: Mapping[str, Encoder]) -> None:
        """Attach backbones, so that the model can predict items, not only embeddings.

        Raises UsageError if the widths of an encoder and its tower differ, CheckFailed if the model was trained on
        another backbone (fingerprints differ).
        """
        for modality, encoder in encoders.items():
            dim = self.tower(modality).dim
            if encoder.dim != dim:
                raise UsageError(f"{modality}: the encoder's width is {encoder.dim}, the tower's is {dim}")
            known = self.backbones.get(modality, {}).get("fingerprint", encoder.fingerprint)
            if known != encoder.fingerprint:
                raise CheckFailed(
                    f"{modality}: this encoder is {encoder.fingerprint[:16]}, the towers were trained on {known[:16]}"
                )
        for modality, encoder in encoders.items():
            encoder.eval()
            self._encoders[modality] = encoder
            self.preprocessing[modality] = dict(encoder.preprocessing)
            self.backbones[modality] = {
                "spec": encoder.spec.to_json(),
                "fingerprint": encoder.fingerprint,
                "dim": encoder.dim,
            }

    def encoder(self, modality: str) -> Encoder:
        """The attached encoder of a modality. Raises UsageError if there is none."""
        if modality not in self._encoders:
            raise UsageError(f"no {modality!r} encoder is attached; load the bundle with its encoders")
        return self._encoders[modality]

    def embed(self, modality: str, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
        """Embeddings [N, D] of decoded items (RGB images, mono samples at the encoder's rate, or strings)."""
        return np.asarray(self.encoder(modality).encode(items, batch_size=batch_size), np.float32)

    def predict(self, modality: str, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
        """VA points [N, 2] in [0, 1] of decoded items; a point does not depend on the other items (to 1e-5)."""
        return self.predict_embeddings(modality, self.embed(modality, items, batch_size))

    @torch.inference_mode()
    def predict_embeddings(self, modality: str, emb_ND: NDArray[np.floating]) -> NDArray[np.float32]:
        """VA points [N, 2] in [0, 1] of embeddings [N, D], always in evaluation mode."""
        tower = self.tower(modality)
        if emb_ND.ndim != 2 or emb_ND.shape[1] != tower.dim:
            raise ValueError(f"{modality}: embeddings must have shape [N, {tower.dim}], got {list(emb_ND.shape)}")
        va_N2 = np.empty((len(emb_ND), 2), np.float32)
        with _evaluating(tower):
            for start in range(0, len(emb_ND), _EMBEDDING_BATCH):
                rows = slice(start, start + _EMBEDDING_BATCH)
                emb_BD = torch.from_numpy(np.array(emb_ND[rows], np.float32)).to(tower.mean_D.device)
                va_N2[rows] = tower(emb_BD).float().cpu().numpy()
        return va_N2


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)

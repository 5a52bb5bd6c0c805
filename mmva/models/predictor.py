"""A model for inference only: towers in numpy, and encoders that are loaded on first use.

Workers of a bulk pass use it instead of `MMVA`: with exported networks it needs no torch. Its points equal those of
MMVA's towers to 1e-6.

Shapes: B or N items, D a backbone's embedding width, H a tower's hidden width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmva.errors import CheckFailed, UsageError
from mmva.models.bundle import BundleInfo
from mmva.models.config import TowerConfig

_EMBEDDING_BATCH = 4096


class ItemEncoder(Protocol):
    """The interface that a predictor needs of an encoder, for any engine."""

    fingerprint: str
    dim: int
    sample_rate: int | None

    def encode(self, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
        """Embeddings [N, D] of N decoded items."""


class NumpyTower:
    """mmva.models.towers.Tower in evaluation mode, in float32."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]], config: TowerConfig) -> None:
        self._weights, self._config = weights, config
        self.dim = len(weights["mean_D"])

    def __call__(self, emb_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """VA points [B, 2] in [0, 1] of embeddings [B, D]; B may be 0."""
        # Imported here, because some processes never predict.
        from scipy.special import erf, expit

        weights, clip = self._weights, self._config.clip
        z_BD = np.clip((emb_BD - weights["mean_D"]) / weights["std_D"], -clip, clip)
        logit_B2 = 0.0 if "linear.weight" not in weights else z_BD @ weights["linear.weight"].T + weights["linear.bias"]
        if "projection.weight" in weights:
            residual = self._config.head == "residual"
            scale_in, scale_out = (np.float32(n**-0.5 if residual else 1) for n in (self.dim, self._config.hidden))
            x_BH = (z_BD * scale_in) @ weights["projection.weight"].T + weights["projection.bias"]
            hidden_BH = {
                "gelu": lambda: 0.5 * x_BH * (1 + erf(x_BH * np.float32(0.5**0.5))),
                "relu": lambda: np.maximum(x_BH, 0),
                "tanh": lambda: np.tanh(x_BH),
            }[self._config.activation]()
            logit_B2 = logit_B2 + hidden_BH @ weights["head.weight"].T * scale_out + weights.get("head.bias", 0)
        va_B2: NDArray[np.float32] = expit(logit_B2)
        return va_B2


class Predictor:
    """Embeds items and predicts VA points; the part of MMVA's interface that a bulk pass needs.

    Attributes:
        dims: Embedding width of each modality.
        backbones, preprocessing, intervals, provenance, digest: As the bundle records them; see MMVA.
    """

    def __init__(self, info: BundleInfo, weights: bytes, load: Callable[[str], ItemEncoder]) -> None:
        """Read the towers of a verified bundle from its model.safetensors; `load` loads an encoder on first use.

        Raises UsageError if the weights are unreadable or do not fit the bundle's description.
        """
        self.dims, self.backbones, self.preprocessing = info.dims, info.backbones, info.preprocessing
        self.intervals, self.provenance, self.digest = info.intervals, info.provenance, info.digest
        self._towers = _towers(info, weights)
        self._load = load
        self._encoders: dict[str, ItemEncoder] = {}

    def encoder(self, modality: str) -> ItemEncoder:
        """The encoder of a modality, loaded on first use.

        Raises UsageError if the model has no such tower, CheckFailed if the loaded encoder is not the one that the
        towers were trained on.
        """
        if modality not in self._encoders:
            self._tower(modality)
            encoder = self._load(modality)
            known = self.backbones[modality]["fingerprint"]
            if encoder.fingerprint != known:
                raise CheckFailed(
                    f"{modality}: this encoder is {encoder.fingerprint[:16]}, the towers were trained on {known[:16]}"
                )
            self._encoders[modality] = encoder
        return self._encoders[modality]

    def embed(self, modality: str, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
        """Embeddings [N, D] of decoded items; see MMVA.embed."""
        return np.asarray(self.encoder(modality).encode(items, batch_size=batch_size), np.float32)

    def predict(self, modality: str, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
        """VA points [N, 2] in [0, 1] of decoded items."""
        return self.predict_embeddings(modality, self.embed(modality, items, batch_size))

    def predict_embeddings(self, modality: str, emb_ND: NDArray[np.floating]) -> NDArray[np.float32]:
        """VA points [N, 2] in [0, 1] of embeddings [N, D]."""
        tower = self._tower(modality)
        if emb_ND.ndim != 2 or emb_ND.shape[1] != tower.dim:
            raise ValueError(f"{modality}: embeddings must have shape [N, {tower.dim}], got {list(emb_ND.shape)}")
        va_N2 = np.empty((len(emb_ND), 2), np.float32)
        for start in range(0, len(emb_ND), _EMBEDDING_BATCH):
            rows = slice(start, start + _EMBEDDING_BATCH)
            va_N2[rows] = tower(np.asarray(emb_ND[rows], np.float32))
        return va_N2

    def _tower(self, modality: str) -> NumpyTower:
        if modality not in self._towers:
            raise UsageError(f"this model has no {modality!r} tower; it has {', '.join(self.dims)}")
        return self._towers[modality]


def _towers(info: BundleInfo, weights: bytes) -> dict[str, NumpyTower]:
    """The towers of a bundle, with the checks of load_bundle: names, shapes and finite values of all tensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        state = load(weights)
    except SafetensorError as error:
        raise UsageError(f"bundle: model.safetensors is not a safetensors file ({error})") from None
    shapes = {
        f"towers.{modality}.{name}": shape
        for modality, dim in info.dims.items()
        for name, shape in _shapes(dim, info.config).items()
    }
    found = {name: array.shape for name, array in state.items()}
    if wrong := sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name)):
        name = wrong[0]
        raise UsageError(
            f"bundle: model.safetensors does not fit bundle.json ({name}: {found.get(name)}, not {shapes.get(name)})"
        )
    if not all(np.isfinite(array).all() for array in state.values()):
        raise UsageError("bundle: model.safetensors contains NaN or infinite weights")
    prefixes = {modality: f"towers.{modality}." for modality in info.dims}
    return {
        modality: NumpyTower(
            {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}, info.config
        )
        for modality, prefix in prefixes.items()
    }


def _shapes(dim: int, config: TowerConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of mmva.models.towers.Tower, by name."""
    hidden = config.hidden
    shapes: dict[str, tuple[int, ...]] = {"mean_D": (dim,), "std_D": (dim,)}
    shapes |= {"head.bias": (2,)} if config.head == "mlp" else {"linear.weight": (2, dim), "linear.bias": (2,)}
    path = {"projection.weight": (hidden, dim), "projection.bias": (hidden,), "head.weight": (2, hidden)}
    return shapes | (path if hidden else {})

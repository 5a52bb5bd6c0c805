"""musicnn: convolutional music tagger trained on the Million Song Dataset's tags, read from its TensorFlow checkpoint.

Weights: wheel musicnn 0.1.0, model MSD_musicnn, ISC licence; Pons and Serra, "musicnn: Pre-trained convolutional neural
networks for music audio tagging" (arXiv 1909.06654); architecture of Pons et al., "End-to-end learning for music audio
tagging at scale" (arXiv 1711.02520).

Shapes: B clips, T frames of 16 ms, F = 96 mel bands.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mmva.backbones.base import Encoder, Exportable, Prepared
from mmva.backbones.spec import BackboneSpec
from mmva.backbones.tf_checkpoint import read_checkpoint
from mmva.errors import UsageError

SAMPLE_RATE: Final = 16_000
N_MELS: Final = 96
# Three seconds, the length of training clips. Shorter clips are repeated to it, as in training ("repeat-pad").
TRAINED_FRAMES: Final = 187
# Layers that form an embedding. The mean over time of all layers (561 timbral and temporal filters, 3 x 64 of the
# middle) keeps loudness, brightness and rhythm, which carry arousal; the penultimate layer, one step before tags such
# as "happy", "sad", "chill" or "party", carries valence. Towers standardise each dimension, so scales may differ.
EMBEDDING_LAYERS: Final = ("mean_pool", "penultimate")

_MEL: Final[dict[str, Any]] = {"n_fft": 512, "hop_length": 256, "n_mels": N_MELS, "power": 2.0}
_LOG_SCALE: Final = 10_000.0
_TIMBRAL: Final = ((7, 38), (7, 67))
_TEMPORAL: Final = (128, 64, 32)
_TIMBRAL_FILTERS, _TEMPORAL_FILTERS, _MID_FILTERS = 204, 51, 64
_FRONT: Final = 2 * _TIMBRAL_FILTERS + 3 * _TEMPORAL_FILTERS
_POOL: Final = _FRONT + 3 * _MID_FILTERS
_PENULTIMATE, _TAGS = 200, 50
_WIDTHS: Final = {"mean_pool": _POOL, "max_pool": _POOL, "penultimate": _PENULTIMATE, "tags": _TAGS}
_BATCH_NORM_EPSILON: Final = 1e-3


class LogMel(nn.Module):
    """log10(10000 x + 1) of the mel power spectrogram with librosa's defaults.

    In float32: the original casts the power to float16, which overflows on loud music.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        self._mel = MelSpectrogram(SAMPLE_RATE, **_MEL, norm="slaney", mel_scale="slaney", pad_mode="constant")

    def forward(self, samples_BT: Tensor) -> Tensor:
        """Log-mel frames [..., 1 + T // 256, 96] of samples [..., T]."""
        return torch.log10(_LOG_SCALE * self._mel(samples_BT) + 1.0).transpose(-1, -2)

    def power(self, samples_BT: Tensor) -> Tensor:
        """Power spectrum [..., 1 + T // 256, 257] of samples [..., T]."""
        return self._mel.spectrogram(samples_BT).transpose(-1, -2)

    def from_power(self, power_BTP: Tensor) -> Tensor:
        """Log-mel frames [..., T, 96] of the power spectrum [..., T, 257]."""
        return torch.log10(_LOG_SCALE * (power_BTP @ self._mel.mel_scale.fb) + 1.0)


class MusicNN(nn.Module):
    """The network, layer by layer as in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(1, eps=_BATCH_NORM_EPSILON)
        self.timbral = nn.ModuleList(
            _FrontBlock(_TIMBRAL_FILTERS, kernel, padding=(3, 0)).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks this form
            for kernel in _TIMBRAL
        )
        self.temporal = nn.ModuleList(_FrontBlock(_TEMPORAL_FILTERS, (length, 1)) for length in _TEMPORAL)
        self.middle = nn.ModuleList(_MidBlock(width) for width in (_FRONT, _MID_FILTERS, _MID_FILTERS))
        self.pool_norm = _norm(2 * _POOL)
        self.dense = nn.Linear(2 * _POOL, _PENULTIMATE)
        self.dense_norm = _norm(_PENULTIMATE)
        self.tags = nn.Linear(_PENULTIMATE, _TAGS)

    def forward(self, mel_BTF: Tensor) -> dict[str, Tensor]:
        """Outputs by layer: mean_pool and max_pool [B, 753], penultimate [B, 200], tags [B, 50] in (0, 1)."""
        x_B1TF = self.input_norm(mel_BTF.unsqueeze(1))
        wide = x_B1TF.contiguous(memory_format=torch.channels_last)
        front = [block(wide) for block in self.timbral]
        for block, length in zip(self.temporal, _TEMPORAL, strict=True):
            # TensorFlow's "same" padding: an odd total has its extra frame at the end.
            before = (length - 1) // 2
            front.append(block(functional.pad(x_B1TF, (0, 0, before, length - 1 - before))))
        layers = [torch.cat(front, dim=1).transpose(1, 2)]
        layers.append(self.middle[0](layers[0]))
        layers.append(self.middle[1](layers[1]) + layers[1])
        layers.append(self.middle[2](layers[2]) + layers[2])
        features_BTD = torch.cat(layers, dim=2)
        max_pool, mean_pool = features_BTD.amax(dim=1), features_BTD.mean(dim=1)
        pooled = torch.stack([max_pool, mean_pool], dim=2).flatten(1)
        penultimate = self.dense_norm(functional.relu(self.dense(self.pool_norm(pooled))))
        tags = torch.sigmoid(self.tags(penultimate))
        return {"mean_pool": mean_pool, "max_pool": max_pool, "penultimate": penultimate, "tags": tags}


class MusicnnEncoder(Encoder):
    """Log-mel, network, and some layers side by side, EMBEDDING_LAYERS by default."""

    # 48 s of samples: the front end needs 3 MB per second.
    max_batch_elements: ClassVar[int | None] = 48 * SAMPLE_RATE

    def __init__(self, spec: BackboneSpec, network: MusicNN) -> None:
        layers = spec.layers or EMBEDDING_LAYERS
        super().__init__(
            spec,
            network,
            dim=sum(_WIDTHS[layer] for layer in layers),
            preprocessing={
                **_MEL,
                "sample_rate": SAMPLE_RATE,
                "mel": "slaney scale and norm, centred, zero-padded",
                "compression": f"log10({_LOG_SCALE:g} x + 1)",
                "repeat_to_frames": TRAINED_FRAMES,
                "layers": list(layers),
            },
            architecture={"name": "musicnn"},
            sample_rate=SAMPLE_RATE,
        )
        self.log_mel = LogMel()
        self._layers = layers

    def prepare(self, item: NDArray[np.float32]) -> Prepared:
        """One clip as a tensor: samples [T]."""
        return {"samples": torch.from_numpy(np.ascontiguousarray(item, np.float32))}

    def forward(self, **batch: Tensor) -> Tensor:
        """Embed samples [B, T] of equal lengths; shorter log-mel is repeated to three seconds."""
        mel_BTF = self.log_mel(batch["samples"])
        repeats = -(-TRAINED_FRAMES // mel_BTF.shape[1])
        if repeats > 1:
            mel_BTF = mel_BTF.repeat(1, repeats, 1)[:, :TRAINED_FRAMES]
        return _embedding(self.network(mel_BTF), self._layers)

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The front end and the three middle blocks; the modules of the penultimate layer, without the tags."""
        network: Any = self.network
        front = nn.ModuleList([network.input_norm, network.timbral, network.temporal])
        return [front, *network.middle], [network.pool_norm, network.dense, network.dense_norm]

    def exportable(self, items: Sequence[Any]) -> Exportable:
        """The part after the power spectrum, which the front computes."""
        power_BTP = self.log_mel.power(self.collate([self.prepare(item) for item in items])["samples"])
        return Exportable(_FromPower(self.log_mel, self.network, self._layers), {"power": power_BTP}, {"power": (0, 1)})

    def front(self) -> dict[str, Any]:
        """The front that computes the spectrum and repeats short clips."""
        frames = {"n_fft": _MEL["n_fft"], "hop": _MEL["hop_length"], "least_frames": TRAINED_FRAMES}
        return {"front": "PowerSpectrogram", **frames}


class _FromPower(nn.Module):
    """The network after the power spectrum."""

    def __init__(self, log_mel: LogMel, network: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.log_mel, self.network, self._layers = log_mel, network, layers

    def forward(self, power: Tensor) -> Tensor:
        return _embedding(self.network(self.log_mel.from_power(power)), self._layers)


def _embedding(found: Mapping[str, Tensor], layers: Sequence[str]) -> Tensor:
    return torch.cat([found[name] for name in layers], dim=1)


class _FrontBlock(nn.Module):
    """Convolution, ReLU, batch norm, maximum over the bands: [B, 1, T, F] to [B, C, T].

    The maximum is taken first, so that the other steps process a sixtieth of the data. It commutes with ReLU, and with
    the norm if gamma is positive. If gamma is negative, the minimum (maximum of the negated response) replaces it.
    """

    def __init__(self, filters: int, kernel: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, filters, kernel)
        self.padding = padding
        self.norm = _norm(filters)

    def forward(self, x_B1TF: Tensor) -> Tensor:
        assert self.conv.bias is not None
        sign = torch.where(self.norm.weight < 0, -1.0, 1.0)
        weight, bias = self.conv.weight * sign[:, None, None, None], self.conv.bias * sign
        extreme = functional.conv2d(x_B1TF, weight, bias, padding=self.padding).amax(dim=3)
        return self.norm(functional.relu(extreme * sign[:, None]))


class _MidBlock(nn.Module):
    """Convolution over time across all features, ReLU, batch norm: [B, T, D] to [B, T, 64]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, _MID_FILTERS, (7, width), padding=(3, 0))
        self.norm = _norm(_MID_FILTERS)

    def forward(self, features_BTD: Tensor) -> Tensor:
        response = self.conv(features_BTD.unsqueeze(1)).squeeze(3)
        return self.norm(functional.relu(response)).transpose(1, 2)


def load(spec: BackboneSpec, folder: Path) -> MusicnnEncoder:
    """Musicnn from a folder with its TensorFlow checkpoint."""
    network = MusicNN()
    try:
        network.load_state_dict(_state(network, read_checkpoint(folder)))
    except (KeyError, RuntimeError) as error:
        raise UsageError(f"backbone {spec.source}: {folder} is not MSD_musicnn's checkpoint ({error})") from error
    return MusicnnEncoder(spec, network)


def _norm(features: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(features, eps=_BATCH_NORM_EPSILON)


def _state(network: MusicNN, variables: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """Torch state of the checkpoint's variables, which TensorFlow numbers in the order of creation."""
    blocks = [*network.timbral, *network.temporal, *network.middle]
    norms = [network.input_norm, *(block.norm for block in blocks), network.pool_norm, network.dense_norm]
    kernels = {f"conv2d{_suffix(i)}": block.conv for i, block in enumerate(blocks)}
    kernels |= {"dense": network.dense, "dense_1": network.tags}
    names = {module: name for name, module in network.named_modules()}
    state = {}
    for scope, layer in kernels.items():
        kernel = torch.from_numpy(variables[f"{scope}/kernel"])
        # TensorFlow's axes are height, width, inputs, outputs, or inputs, outputs.
        state[f"{names[layer]}.weight"] = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        state[f"{names[layer]}.bias"] = torch.from_numpy(variables[f"{scope}/bias"])
    for i, norm in enumerate(norms):
        scope, name = f"batch_normalization{_suffix(i)}", names[norm]
        state[f"{name}.weight"] = torch.from_numpy(variables[f"{scope}/gamma"])
        state[f"{name}.bias"] = torch.from_numpy(variables[f"{scope}/beta"])
        state[f"{name}.running_mean"] = torch.from_numpy(variables[f"{scope}/moving_mean"])
        state[f"{name}.running_var"] = torch.from_numpy(variables[f"{scope}/moving_variance"])
        state[f"{name}.num_batches_tracked"] = torch.tensor(0)
    return state


def _suffix(i: int) -> str:
    return f"_{i}" if i else ""

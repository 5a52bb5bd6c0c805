"""MERT and its relatives: self-supervised audio transformers, mean over time of the last hidden state.

Weights: m-a-p/MERT-v1-95M, 768-d at 24 kHz, CC-BY-NC-4.0 (research, no commercial use); Li et al., "MERT: Acoustic
Music Understanding Model with Large-Scale Self-supervised Training" (arXiv 2306.00107).

MERT's hub repository contains its own code. The 95M model uses neither that code's constant-Q branch nor its deep norm;
without them it equals transformers' HuBERT, so the weights are loaded into HuBERT and no code from the hub runs. Other
variants need the repository's code, which the user must trust. HuBERT and wav2vec 2.0 folders load like MERT.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mmva.backbones.base import Encoder, Prepared
from mmva.backbones.pretrained import architecture, hidden_states, layers_of, load_network, quiet, settings
from mmva.backbones.spec import BackboneSpec
from mmva.errors import UsageError

_IN_TREE: Final = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model"}
# Used in pre-training only.
_UNUSED: Final = ("masked_spec_embed",)


class MertEncoder(Encoder):
    """A HuBERT-like network over raw samples."""

    # 32 s at 24 kHz: the first convolution alone needs 10 MB per second.
    max_batch_elements: ClassVar[int | None] = 32 * 24_000
    varying_axes: ClassVar[tuple[int, ...]] = (1,)

    def __init__(self, spec: BackboneSpec, network: Any, extractor: Any) -> None:
        super().__init__(
            spec,
            network,
            dim=network.config.hidden_size * max(1, len(spec.layers)),
            preprocessing=settings(extractor, ("do_normalize", "sampling_rate"))
            | {"pooling": "mean over time of the last hidden state"}
            | layers_of(spec, network),
            architecture=architecture(network.config),
            sample_rate=extractor.sampling_rate,
        )
        self._extractor = extractor
        self._min_samples = _receptive_field(network.config)

    def prepare(self, item: NDArray[np.float32]) -> Prepared:
        """Normalise one clip: input_values [T], padded with zeros to at least one frame of the network."""
        values = self._extractor(item, sampling_rate=self.sample_rate, return_tensors="pt")["input_values"][0]
        return {"input_values": functional.pad(values.float(), (0, max(0, self._min_samples - len(values))))}

    def blocks(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Transformer layers; in pre-norm networks, the norm after the last layer."""
        network: Any = self.network
        encoder = network.encoder
        return [*encoder.layers], [encoder.layer_norm] if network.config.do_stable_layer_norm else []

    def forward(self, **batch: Tensor) -> Tensor:
        """Embed input_values [B, T] of equal lengths."""
        return hidden_states(self.network, self.spec.layers, batch).mean(dim=1)


def load(spec: BackboneSpec, folder: Path) -> MertEncoder:
    """MERT, HuBERT or wav2vec 2.0 from a folder, or another model with its repository's code.

    Raises UsageError if the model needs code that the user does not trust.
    """
    import transformers

    config = _read_config(spec, folder)
    model_type, options = config.get("model_type"), {}
    if model_type == "mert_model" and _is_hubert(config):
        model_class = transformers.HubertModel
        options["config"] = transformers.HubertConfig.from_dict(config | {"model_type": "hubert"})
    elif model_type in _IN_TREE:
        model_class = getattr(transformers, _IN_TREE[model_type])
    elif spec.trust_remote_code:
        model_class, options["trust_remote_code"] = transformers.AutoModel, True
    else:
        raise UsageError(
            f"backbone {spec.source}: model type {model_type!r} needs code from its repository; pin a revision, set "
            "trust_remote_code in the spec and name the repository in trust_remote_code of the settings"
        )
    network = load_network(model_class, spec, folder, unused=_UNUSED, **options)
    with quiet():
        extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder, local_files_only=True)
    return MertEncoder(spec, network, extractor)


def _read_config(spec: BackboneSpec, folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"backbone {spec.source}: {folder}/config.json cannot be read ({error})") from None


def _is_hubert(config: dict[str, Any]) -> bool:
    """Whether all of MERT's additions to HuBERT are off."""
    return not (config.get("feature_extractor_cqt") or config.get("deepnorm"))


def _receptive_field(config: Any) -> int:
    """Number of samples per frame of the convolutional front end: 400 for HuBERT."""
    field = 1
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        field = (field - 1) * stride + kernel
    return field

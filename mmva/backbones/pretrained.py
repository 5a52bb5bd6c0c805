"""Load transformers models from a local folder: offline, quiet, in float32, and never with random weights."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mmva.backbones.spec import BackboneSpec
from mmva.errors import UsageError, error_line

# The settings that affect a network's result, besides its weights. Listed one by one, because every transformers
# release adds fields to the configuration, and the fingerprint must not change with that.
_ARCHITECTURE: Final = (
    *("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "image_size", "patch_size"),
    *("conv_kernel", "conv_stride", "feat_extract_norm", "feat_extract_activation", "num_conv_pos_embedding_groups"),
    *("do_stable_layer_norm", "pad_token_id"),
)


def load_network(
    model_class: Any, spec: BackboneSpec, folder: Path, *, unused: Sequence[str] = (), **options: Any
) -> Any:
    """Load a transformers model. All weights that it computes with must be in the files.

    Args:
        model_class: A class with from_pretrained.
        spec: Named in errors.
        folder: Local folder in save_pretrained layout.
        unused: Prefixes of parameters that may be missing because the embedding does not depend on them. They are
            set to zero: transformers' random values would change the fingerprint with each load.
        options: Passed to from_pretrained.

    Raises UsageError if files are missing or damaged, or needed weights are missing.
    """
    with quiet():
        try:
            network, report = model_class.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
            raise UsageError(f"backbone {spec.source}: {folder} cannot be loaded ({error_line(error)})") from error
    missing = sorted(report["missing_keys"])
    if absent := [name for name in missing if not name.startswith(tuple(unused))]:
        raise UsageError(
            f"backbone {spec.source}: {len(absent)} weights are missing from {folder}, the first is {absent[0]}; "
            f"is it a {spec.family} model?"
        )
    parameters = dict(network.named_parameters())
    for name in missing:
        nn.init.zeros_(parameters[name])
    return network


def architecture(config: Any) -> dict[str, Any]:
    """The part of a transformers configuration that belongs in a fingerprint."""
    values = config.to_dict()
    return {name: values[name] for name in _ARCHITECTURE if name in values}


def settings(processor: Any, names: Sequence[str]) -> dict[str, Any]:
    """Named settings of a transformers image processor or feature extractor."""
    values = processor.to_dict()
    return {name: values[name] for name in names}


def layers_of(spec: BackboneSpec, network: Any) -> dict[str, Any]:
    """The spec's layers for the fingerprint; empty for the default. Raises UsageError if the network lacks one."""
    most = network.config.num_hidden_layers
    for layer in spec.layers:
        if layer != "last" and int(layer.removeprefix("layer-")) > most:
            raise UsageError(f"backbone {spec.source}: layers: no {layer!r}, the last one is layer-{most}")
    return {"layers": list(spec.layers)} if spec.layers else {}


def hidden_states(network: Any, layers: Sequence[str], batch: Mapping[str, Tensor]) -> Tensor:
    """Last hidden states of a transformer [B, T, D], or those of several layers side by side [B, T, D * layers]."""
    if not layers:
        return network(**batch).last_hidden_state
    found = network(**batch, output_hidden_states=True)
    states = {f"layer-{number}": state for number, state in enumerate(found.hidden_states)}
    return torch.cat([(states | {"last": found.last_hidden_state})[layer] for layer in layers], dim=-1)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and its reports of unused weights."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()

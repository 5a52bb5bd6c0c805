"""Pretrained encoders, one file per family: a name and a source become an encoder with its fingerprint.

Specs and presets need no torch; the first use of `Encoder` or `load_encoder` imports it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmva.backbones.presets import PRESETS, Preset, preset
from mmva.backbones.spec import FAMILIES, BackboneSpec

if TYPE_CHECKING:
    from mmva.backbones.base import Encoder
    from mmva.backbones.loading import load_encoder

__all__ = ["FAMILIES", "PRESETS", "BackboneSpec", "Encoder", "Preset", "load_encoder", "preset"]
_HOMES = {"Encoder": "mmva.backbones.base", "load_encoder": "mmva.backbones.loading"}


def __getattr__(name: str) -> Any:
    """Import names that need torch on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mmva.backbones' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

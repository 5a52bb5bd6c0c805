"""MMVA: images, music and musical captions as points in the valence-arousal plane.

Importing mmva is quick: torch and transformers are imported on first use of a name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmva._torchaudio_compat import ensure_torchaudio_importable

if TYPE_CHECKING:
    from mmva.affect import matching_score
    from mmva.errors import CheckFailed, MediaError, UsageError
    from mmva.models.bundle import load_bundle, save_bundle
    from mmva.models.model import MMVA

__all__ = ["MMVA", "CheckFailed", "MediaError", "UsageError", "load_bundle", "matching_score", "save_bundle"]
_HOMES = {
    "MMVA": "mmva.models.model",
    "CheckFailed": "mmva.errors",
    "MediaError": "mmva.errors",
    "UsageError": "mmva.errors",
    "load_bundle": "mmva.models.bundle",
    "matching_score": "mmva.affect",
    "save_bundle": "mmva.models.bundle",
}

ensure_torchaudio_importable()


def __getattr__(name: str) -> Any:
    """Import the public names on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mmva' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""Load the encoder of a spec."""

import logging
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from mmva.backbones import sources, tiny
from mmva.backbones.base import Encoder
from mmva.backbones.spec import BackboneSpec
from mmva.errors import UsageError

_LOG = logging.getLogger(__name__)
# Family -> the module whose load() reads its folder; imported on first use, because each imports its own libraries.
_MODULES: Final = {
    "clip": "mmva.backbones.clip",
    "mert": "mmva.backbones.mert",
    "roberta": "mmva.backbones.text",
    "minilm": "mmva.backbones.text",
    "efficientnet-lite": "mmva.backbones.efficientnet_lite",
    "musicnn": "mmva.backbones.musicnn",
}


def load_encoder(
    spec: BackboneSpec,
    *,
    fetch: Callable[[str], Path] | None = None,
    mirror: str | None = None,
    trusted_repos: Sequence[str] = (),
) -> Encoder:
    """Load an encoder in evaluation mode, on the CPU, in float32.

    `fetch` and `mirror`: see sources.resolve. `trusted_repos` are the names of hub repositories whose code may run.

    Raises UsageError if the source is missing, not pinned, differs from its pin, or needs code that is not trusted.
    """
    started = time.perf_counter()
    _check_trust(spec, trusted_repos)
    if spec.scheme == "random":
        encoder = tiny.load(spec)
    else:
        folder = sources.resolve(spec, fetch=fetch, mirror=mirror)
        encoder = import_module(_MODULES[spec.family]).load(spec, folder)
    if spec.tuned is not None:
        encoder.load_tuned(sources.tuned_weights(spec, fetch=fetch))
    _LOG.debug("backbone %s: %d-d, %.1f s", spec.source, encoder.dim, time.perf_counter() - started)
    return encoder


def _check_trust(spec: BackboneSpec, trusted_repos: Sequence[str]) -> None:
    """Raises UsageError if the repository's code should run, but is not pinned or not named by the user."""
    if not spec.trust_remote_code:
        return
    if spec.scheme != "hf" or spec.revision is None:
        raise UsageError(f"backbone {spec.source}: trust_remote_code needs an hf: source with a pinned revision")
    if spec.name not in trusted_repos:
        raise UsageError(
            f"backbone {spec.source}: wants to run code of {spec.name}; if you trust it, add {spec.name!r} to "
            "trust_remote_code in the settings"
        )

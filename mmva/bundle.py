"""A model on disk: safetensors, JSON and digests; loading one never runs code from it.

A bundle holds the towers. Backbones are recorded (source, revision, digest, fingerprint), not copied: `load_bundle`
fetches and checks them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from mmva import _bundle_files as bundle_files
from mmva.config import MethodConfig
from mmva.errors import UsageError
from mmva.modalities import Modality
from mmva.model_config import ModelConfig

if TYPE_CHECKING:
    from mmva.model import MMVA

SCHEMA_VERSION = 1


class _Header(MethodConfig):
    """bundle.json."""

    schema_version: Literal[1] = 1
    dims: dict[Modality, int] = Field(min_length=1)
    config: ModelConfig
    provenance: dict[str, Any]


class _Backbone(MethodConfig):
    """One modality's record in backbones.json."""

    spec: Any
    fingerprint: str
    dim: int = Field(ge=1, le=65536)


@dataclass(frozen=True)
class BundleInfo:
    """What a verified bundle says about itself, without its weights."""

    digest: str  # sha256 of SHA256SUMS, the model's identity
    config: ModelConfig
    dims: dict[str, int]  # embedding width by modality
    backbones: dict[str, dict[str, Any]]  # {modality: {"spec", "fingerprint", "dim"}}
    preprocessing: dict[str, dict[str, Any]]  # {modality: JSON-able description}
    intervals: dict[str, dict[str, float]]  # {modality: {"valence", "arousal"}}: half widths
    provenance: dict[str, Any]  # as given to save_bundle
    card: str  # Markdown


def save_bundle(
    directory: str | Path,
    model: MMVA,
    *,
    intervals: Mapping[str, Mapping[str, float]],
    card: str,
    provenance: Mapping[str, Any],
) -> str:
    """Write a model as a bundle and return its digest; the same model and texts give the same bytes.

    Args:
        directory: Must not exist. It appears complete or not at all.
        model: Towers whose backbones are known (attach_encoders, or `model.backbones` and `model.preprocessing` set).
        intervals: Half widths by modality and axis (conformal_intervals).
        card: The model card, Markdown.
        provenance: JSON-able: run, recipe, dataset digest.

    Raises UsageError if the place is taken, a backbone is unknown, or a value is not JSON.
    """
    from safetensors.torch import save

    unknown = [modality for modality in model.dims if modality not in model.backbones]
    if unknown:
        raise UsageError(f"bundle: the model does not know its {unknown[0]} backbone; attach its encoders first")
    header = {
        "schema_version": SCHEMA_VERSION,
        "dims": model.dims,
        "config": model.config.model_dump(mode="json"),
        "provenance": dict(provenance),
    }
    files = {
        bundle_files.HEADER: bundle_files.to_json(header, bundle_files.HEADER),
        bundle_files.WEIGHTS: save({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}),
        bundle_files.BACKBONES: bundle_files.to_json(model.backbones, bundle_files.BACKBONES),
        bundle_files.PREPROCESSING: bundle_files.to_json(model.preprocessing, bundle_files.PREPROCESSING),
        bundle_files.INTERVALS: bundle_files.to_json(
            {modality: dict(widths) for modality, widths in intervals.items()}, bundle_files.INTERVALS
        ),
        bundle_files.CARD: card.encode(),
    }
    return bundle_files.publish(Path(directory), files)


def read_bundle(directory: str | Path) -> tuple[BundleInfo, dict[str, bytes]]:
    """A verified bundle's description and its files by name, without torch; raises as load_bundle."""
    files, digest = bundle_files.read_verified(Path(directory))
    return _info(files, digest), files


def read_bundle_info(directory: str | Path) -> BundleInfo:
    """Verify a bundle and read its description, without weights or backbones; raises as load_bundle."""
    return read_bundle(directory)[0]


def load_bundle(
    directory: str | Path, *, load_encoders: bool = True, mirror: str | None = None, trusted_repos: Sequence[str] = ()
) -> MMVA:
    """Load a model, in evaluation mode.

    Without `load_encoders` it takes embeddings only, and needs no transformers. `mirror` and `trusted_repos` say where
    backbones come from, see mmva.backbones.load_encoder.

    Raises:
        UsageError: If it is not a bundle, has another schema version, or is inconsistent.
        CheckFailed: If a file is missing, surplus or changed, or a backbone is not the recorded one.
    """
    from mmva.model import MMVA

    info, files = read_bundle(directory)
    model = MMVA(info.dims, info.config)
    _load_weights(model, files[bundle_files.WEIGHTS])
    model.backbones, model.preprocessing = info.backbones, info.preprocessing
    model.intervals, model.provenance, model.digest = info.intervals, info.provenance, info.digest
    if load_encoders:
        from mmva.backbones import BackboneSpec, load_encoder

        for modality, record in info.backbones.items():
            spec = BackboneSpec.from_json(record["spec"])
            encoder = load_encoder(spec, mirror=mirror, trusted_repos=trusted_repos)
            model.attach_encoders({modality: encoder})
    return model.eval()


def _info(files: Mapping[str, bytes], digest: str) -> BundleInfo:
    name = bundle_files.HEADER
    raw = bundle_files.from_json(files, name)
    if raw.get("schema_version") != SCHEMA_VERSION:
        found = raw.get("schema_version")
        raise UsageError(f"bundle: {name} has schema version {found}, this mmva reads version {SCHEMA_VERSION}")
    try:
        header = _Header.model_validate(raw)
        name = bundle_files.BACKBONES
        records = bundle_files.from_json(files, name)
        backbones = {modality: _Backbone.model_validate(record) for modality, record in records.items()}
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(f"bundle: {name}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    dims = {str(modality): dim for modality, dim in header.dims.items()}
    if dims != {modality: backbone.dim for modality, backbone in backbones.items()}:
        raise UsageError(f"bundle: {name} and {bundle_files.HEADER} disagree on the embeddings' widths")
    return BundleInfo(
        digest=digest,
        config=header.config,
        dims=dims,
        backbones={modality: backbone.model_dump() for modality, backbone in backbones.items()},
        preprocessing=bundle_files.from_json(files, bundle_files.PREPROCESSING),
        intervals=bundle_files.from_json(files, bundle_files.INTERVALS),
        provenance=header.provenance,
        card=files[bundle_files.CARD].decode("utf-8", "replace"),
    )


def _load_weights(model: MMVA, data: bytes) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    name = bundle_files.WEIGHTS
    try:
        state = load(data)
        model.load_state_dict(state)
    except SafetensorError as error:
        raise UsageError(f"bundle: {name} is not a safetensors file ({error})") from None
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise UsageError(f"bundle: {name} does not fit bundle.json ({first})") from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise UsageError(f"bundle: {name} holds NaN or infinite weights")

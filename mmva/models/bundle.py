"""A model on disk: safetensors, JSON and digests. Loading a bundle never runs code from it.

A bundle contains the towers. Backbones are recorded (source, revision, digest, fingerprint), not copied; `load_bundle`
fetches and checks them.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from mmva.config import MethodConfig
from mmva.errors import CheckFailed, UsageError, error_line
from mmva.files import sha256_hex, write_atomically
from mmva.modalities import Modality
from mmva.models.config import ModelConfig

if TYPE_CHECKING:
    from mmva.models.model import MMVA

SCHEMA_VERSION = 1
SUMS = "SHA256SUMS"
HEADER, WEIGHTS, BACKBONES, PREPROCESSING, INTERVALS, CARD = FILES = (
    "bundle.json", "model.safetensors", "backbones.json", "preprocessing.json", "intervals.json", "card.md",
)  # fmt: skip
_SUM_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def to_json(value: object, name: str) -> bytes:
    """Deterministic JSON: sorted keys, one trailing newline. Raises UsageError if JSON cannot represent the value."""
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: not representable as JSON ({error})") from None
    return (text + "\n").encode()


def from_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UsageError with the file's name if it is not one."""
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise UsageError(f"bundle: {name} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"bundle: {name} must contain a JSON object, found {type(value).__name__}")
    return value


def publish(directory: Path, files: Mapping[str, bytes]) -> str:
    """Write a bundle to a temporary folder, then rename it; never overwrites anything.

    Returns the digest, which is the sha256 of SHA256SUMS. Raises UsageError if the folder exists or cannot be written.
    """
    assert set(files) == set(FILES)
    if directory.exists():
        raise UsageError(f"{directory}: exists already; a bundle is never overwritten, choose another folder")
    sums = "".join(f"{sha256_hex(files[name])}  {name}\n" for name in sorted(files)).encode()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise UsageError(f"{directory}: cannot be written ({error.strerror})") from None
    try:
        temporary.chmod(0o755)
        for name, data in {**files, SUMS: sums}.items():
            write_atomically(temporary / name, data)
        temporary.rename(directory)
    except OSError as error:
        raise UsageError(f"{directory}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sha256_hex(sums)


def read_verified(directory: Path) -> tuple[dict[str, bytes], str]:
    """All files of a bundle, read once and checked against SHA256SUMS, and the bundle's digest.

    Raises UsageError if the directory is not a bundle, CheckFailed if a file is missing, changed or not listed.
    """
    if not (directory / SUMS).is_file():
        raise UsageError(f"{directory}: not a bundle (no {SUMS}); use a folder that training wrote")
    sums = (directory / SUMS).read_bytes()
    digests = _parse_sums(sums, directory)
    present = {path.name for path in directory.iterdir()} - {SUMS}
    for name in sorted(present ^ set(digests)):
        raise CheckFailed(f"{directory / name}: " + ("not listed in SHA256SUMS" if name in present else "missing"))
    files: dict[str, bytes] = {}
    for name, digest in digests.items():
        path = directory / name
        if not path.is_file():
            raise CheckFailed(f"{path}: not a regular file")
        files[name] = path.read_bytes()
        if sha256_hex(files[name]) != digest:
            raise CheckFailed(f"{path}: changed; its sha256 differs from {SUMS}")
    return files, sha256_hex(sums)


def _parse_sums(sums: bytes, directory: Path) -> dict[str, str]:
    matches = [_SUM_LINE.fullmatch(line) for line in sums.decode("utf-8", "replace").splitlines()]
    digests = {match[2]: match[1] for match in matches if match}
    if None in matches or len(digests) != len(matches) or set(digests) != set(FILES):
        raise CheckFailed(f"{directory / SUMS}: must list exactly {', '.join(FILES)}, one 'sha256  name' per line")
    return digests


class _Header(MethodConfig):
    """bundle.json."""

    schema_version: Literal[1] = 1
    dims: dict[Modality, int] = Field(min_length=1)
    config: ModelConfig
    provenance: dict[str, Any]


class _Backbone(MethodConfig):
    """A modality's record in backbones.json."""

    spec: Any
    fingerprint: str
    dim: int = Field(ge=1, le=65536)


@dataclass(frozen=True)
class BundleInfo:
    """A verified bundle's description, without its weights."""

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
    """Write a model as a bundle and return its digest. The same arguments give the same bytes.

    The folder is written completely or not at all. The model's `backbones` and `preprocessing` must be set, for
    instance by attach_encoders. `intervals` are half widths by modality and axis (conformal_intervals), `card` is
    Markdown, `provenance` is JSON-able: run, recipe, dataset digest.

    Raises UsageError if the folder exists, a backbone is not set, or JSON cannot represent a value.
    """
    from safetensors.torch import save

    unknown = [modality for modality in model.dims if modality not in model.backbones]
    if unknown:
        raise UsageError(f"bundle: the model has no {unknown[0]} backbone; attach its encoders first")
    header = {
        "schema_version": SCHEMA_VERSION,
        "dims": model.dims,
        "config": model.config.model_dump(mode="json"),
        "provenance": dict(provenance),
    }
    files = {
        HEADER: to_json(header, HEADER),
        WEIGHTS: save({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}),
        BACKBONES: to_json(model.backbones, BACKBONES),
        PREPROCESSING: to_json(model.preprocessing, PREPROCESSING),
        INTERVALS: to_json({modality: dict(widths) for modality, widths in intervals.items()}, INTERVALS),
        CARD: card.encode(),
    }
    return publish(Path(directory), files)


def read_bundle(directory: str | Path) -> tuple[BundleInfo, dict[str, bytes]]:
    """A verified bundle's description and its files by name, without torch. Raises as load_bundle."""
    files, digest = read_verified(Path(directory))
    return _info(files, digest), files


def read_bundle_info(directory: str | Path) -> BundleInfo:
    """A verified bundle's description, without weights or backbones. Raises as load_bundle."""
    return read_bundle(directory)[0]


def load_bundle(
    directory: str | Path, *, load_encoders: bool = True, mirror: str | None = None, trusted_repos: Sequence[str] = ()
) -> MMVA:
    """Load a model in evaluation mode.

    Without `load_encoders`, the model only takes embeddings, and needs no transformers. For `mirror` and
    `trusted_repos` see mmva.backbones.load_encoder. Raises UsageError if the folder is not a bundle, has another schema
    version, or is inconsistent; CheckFailed if a file is missing, unexpected or changed, or a backbone is not the
    recorded one.
    """
    from mmva.models.model import MMVA

    info, files = read_bundle(directory)
    model = MMVA(info.dims, info.config)
    _load_weights(model, files[WEIGHTS])
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
    name = HEADER
    raw = from_json(files, name)
    if (found := raw.get("schema_version")) != SCHEMA_VERSION:
        raise UsageError(f"bundle: {name} has schema version {found}, this mmva reads version {SCHEMA_VERSION}")
    try:
        header = _Header.model_validate(raw)
        name = BACKBONES
        records = from_json(files, name)
        backbones = {modality: _Backbone.model_validate(record) for modality, record in records.items()}
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(f"bundle: {name}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    dims = {str(modality): dim for modality, dim in header.dims.items()}
    if dims != {modality: backbone.dim for modality, backbone in backbones.items()}:
        raise UsageError(f"bundle: {name} and {HEADER} have different embedding widths")
    return BundleInfo(
        digest=digest,
        config=header.config,
        dims=dims,
        backbones={modality: backbone.model_dump() for modality, backbone in backbones.items()},
        preprocessing=from_json(files, PREPROCESSING),
        intervals=from_json(files, INTERVALS),
        provenance=header.provenance,
        card=files[CARD].decode("utf-8", "replace"),
    )


def _load_weights(model: MMVA, data: bytes) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(data)
        model.load_state_dict(state)
    except SafetensorError as error:
        raise UsageError(f"bundle: {WEIGHTS} is not a safetensors file ({error})") from None
    except RuntimeError as error:
        raise UsageError(f"bundle: {WEIGHTS} does not fit {HEADER} ({error_line(error)})") from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise UsageError(f"bundle: {WEIGHTS} contains NaN or infinite weights")

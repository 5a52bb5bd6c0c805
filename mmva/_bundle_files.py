"""A bundle as bytes: exactly these files, each covered by SHA256SUMS, published by one rename."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmva.errors import CheckFailed, UsageError
from mmva.files import write_atomically

SUMS = "SHA256SUMS"
HEADER, WEIGHTS, BACKBONES, PREPROCESSING, INTERVALS, CARD = FILES = (
    "bundle.json", "model.safetensors", "backbones.json", "preprocessing.json", "intervals.json", "card.md",
)  # fmt: skip
_SUM_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def to_json(value: object, name: str) -> bytes:
    """Deterministic JSON: sorted keys, one trailing newline; UsageError if the value does not fit into JSON."""
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: not representable as JSON ({error})") from None
    return (text + "\n").encode()


def from_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A file's JSON object; UsageError with the file's name if it is not one."""
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise UsageError(f"bundle: {name} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"bundle: {name} must hold a JSON object, found {type(value).__name__}")
    return value


def publish(directory: Path, files: Mapping[str, bytes]) -> str:
    """Write a bundle next to its place, then rename it; nothing is ever overwritten.

    Returns its digest, the sha256 of SHA256SUMS. Raises UsageError if the place is taken or cannot be written.
    """
    assert set(files) == set(FILES)
    if directory.exists():
        raise UsageError(f"{directory}: exists already; a bundle is never overwritten, choose another place")
    sums = "".join(f"{_sha256(files[name])}  {name}\n" for name in sorted(files)).encode()
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
    return _sha256(sums)


def read_verified(directory: Path) -> tuple[dict[str, bytes], str]:
    """All files of a bundle, each read once and checked against SHA256SUMS, and the bundle's digest.

    Raises UsageError if the directory is not a bundle, and CheckFailed with the name of a file that is missing, changed
    or not listed.
    """
    if not (directory / SUMS).is_file():
        raise UsageError(f"{directory}: not a bundle (no {SUMS}); give the folder that training wrote")
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
        if _sha256(files[name]) != digest:
            raise CheckFailed(f"{path}: changed, its sha256 is not the one in {SUMS}")
    return files, _sha256(sums)


def _parse_sums(sums: bytes, directory: Path) -> dict[str, str]:
    matches = [_SUM_LINE.fullmatch(line) for line in sums.decode("utf-8", "replace").splitlines()]
    digests = {match[2]: match[1] for match in matches if match}
    if None in matches or len(digests) != len(matches) or set(digests) != set(FILES):
        raise CheckFailed(f"{directory / SUMS}: must list exactly {', '.join(FILES)}, one 'sha256  name' per line")
    return digests


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

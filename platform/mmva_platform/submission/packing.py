"""Chooses and measures the files of a working directory before anything is sent, and writes them into a zip file.

The same files give the same bytes. Ray names a package by its digest, so it uploads an unchanged package only once.
"""

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from mmva.errors import UsageError

# Patterns of what is never sent: history, environments, caches, outputs of runs, and credentials.
EXCLUDED: Final = (
    ".git/", ".venv/", "venv/", "__pycache__/", "*.egg-info/", ".*_cache/", ".hypothesis/", "build/", "dist/",
    "mmva-home/", "mmva-quickstart*/", "mmva-work/", "mlruns/", "*.db", "*.sock",
    ".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".aws/", ".netrc", ".pypirc", "credentials*.json",
)  # fmt: skip
_IGNORE_FILES: Final = (".gitignore", ".rayignore")
_LARGEST_SHOWN: Final = 3
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest time in a zip file; real times would change the digest
_EXECUTABLE: Final = 0o111


@dataclass(frozen=True)
class Package:
    """The files of a working directory that are sent with a job."""

    directory: Path
    files: tuple[str, ...]  # relative to it, sorted
    size: int  # bytes before compression
    added: Mapping[str, Path] = field(default_factory=dict)  # name in the package -> a file from elsewhere


def choose_files(directory: Path, exclude: Sequence[str] = (), max_mb: float = 100.0) -> Package:
    """Choose the files of a directory to send, at most `max_mb` (10^6 bytes) before compression.

    Its `.gitignore` and `.rayignore` files apply, nested ones too, and the patterns in `exclude`, relative to the
    directory. Raises UsageError if it is not a directory, no file is left, or the files are too large.
    """
    if not directory.is_dir():
        raise UsageError(f"working directory {directory}: not a directory")
    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in _walk(directory, exclude)}
    total = sum(sizes.values())
    if not sizes:
        raise UsageError(f"working directory {directory}: no files to send; the patterns exclude all of them")
    if total > max_mb * 1e6:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:_LARGEST_SHOWN]
        named = ", ".join(f"{name} ({sizes[name] / 1e6:.1f} MB)" for name in largest)
        raise UsageError(
            f"working directory {directory}: {total / 1e6:.1f} MB in {len(sizes)} files, the limit is {max_mb:g} MB "
            f"(largest: {named}); use --exclude PATTERN, a .rayignore file, or --max-mb"
        )
    return Package(directory, tuple(sorted(sizes)), total)


def write_package(package: Package, target: Path) -> None:
    """Write the files into a zip file; equal files give equal bytes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        paths = {name: package.directory / name for name in package.files} | dict(package.added)
        for name, path in paths.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o644 | (path.stat().st_mode & _EXECUTABLE)) << 16
            archive.writestr(info, path.read_bytes())


def _walk(directory: Path, exclude: Sequence[str]) -> Iterator[Path]:
    """Regular files that no pattern excludes; links to directories are not followed."""
    rules: dict[Path, GitIgnoreSpec] = {}
    for folder, subfolders, names in os.walk(directory):
        here = Path(folder)
        own = [line for name in _IGNORE_FILES if name in names for line in _lines(here / name)]
        if here == directory:
            rules[here] = GitIgnoreSpec.from_lines([*own, *EXCLUDED, *exclude])  # no ignore file can undo EXCLUDED
        elif own:
            rules[here] = GitIgnoreSpec.from_lines(own)
        chain = [(place, spec) for place, spec in rules.items() if place == here or place in here.parents]
        subfolders[:] = sorted(
            name for name in subfolders if _kept(here / name, chain, "/") and not (here / name).is_symlink()
        )
        yield from (here / name for name in names if _kept(here / name, chain) and (here / name).is_file())


def _kept(path: Path, chain: Sequence[tuple[Path, GitIgnoreSpec]], suffix: str = "") -> bool:
    return not any(spec.match_file(path.relative_to(place).as_posix() + suffix) for place, spec in chain)


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()

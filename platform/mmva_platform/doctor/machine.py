"""Checks of this machine: interpreter, packages, limits, disk."""

import os
import re
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.request import getproxies, proxy_bypass

from packaging.requirements import Requirement

from mmva_platform.cluster import temporary_fault, temporary_folder, worker_python_path, writable_bytes
from mmva_platform.doctor.findings import Finding, broken, ok, warning

_OPEN_FILES: Final = 4096
_FREE_GB: Final = 5.0
_GENERATE: Final = "run: ray get-auth-token --generate"
_NATIVE: Final = ("torch", "transformers", "onnxruntime", "soundfile", "av", "PIL.Image", "pyarrow.parquet", "ray")


def python() -> Finding:
    """The interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 13):
        return ok("python", found)
    return broken("python", f"{found}, mmva needs 3.11 or 3.12", "make a virtual environment with one of them")


def standard_library() -> Finding:
    """Whether a file hides Python's own `platform` module in workers, whose import path differs."""
    for folder in (Path.cwd(), *map(Path, worker_python_path().split(os.pathsep))):
        package = folder / "platform" / "__init__.py"
        if package.exists():
            says = f"in workers `import platform` finds {package}, so nothing starts"
            todo = "remove that file (the folder is a source root), or the folder above it from PYTHONPATH"
            return broken("standard library", says, todo)
    return ok("standard library", "not shadowed")


def packages() -> Finding:
    """Whether the installed packages satisfy mmva-platform's requirements."""
    try:
        wanted = [Requirement(text) for text in metadata.requires("mmva-platform") or []]
    except metadata.PackageNotFoundError:
        todo = "run: pip install -c constraints.txt -e ."
        return warning("packages", "mmva-platform itself is not installed", todo)
    wrong = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return broken("packages", "; ".join(wrong), "run: pip install -c constraints.txt -e . in this environment")
    return ok("packages", f"{len(wanted)} requirements, ray {metadata.version('ray')}")


def native_libraries() -> Finding:
    """Whether the libraries load; in a separate process, because a broken one may crash it."""
    code = f"import mmva, importlib\nfor name in {_NATIVE}: print(name, flush=True); importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    if done.returncode == 0:
        return ok("native libraries", ", ".join(_NATIVE))
    last = done.stdout.split()[-1] if done.stdout.split() else "mmva"
    reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    return broken("native libraries", f"{last} does not load ({reason})", f"install {last.partition('.')[0]} again")


def open_files() -> Finding:
    """The limit of open files; Ray opens one for every worker and connection."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit < _OPEN_FILES:
        return broken("open files", f"at most {limit}", f"run: ulimit -n {_OPEN_FILES} or more, before Ray starts")
    return ok("open files", f"at most {limit}")


def home(folder: Path) -> Finding:
    """The folder of runs and caches: writable, on a disk with free space."""
    try:
        free_gb = writable_bytes(folder.resolve()) / 1e9
    except OSError as error:
        todo = "choose another --home, or change the permissions and free space there"
        return broken("home", f"{folder}: cannot be written ({error.strerror})", todo)
    if free_gb < _FREE_GB:
        todo = f"free {_FREE_GB:g} GB or more, or choose another --home"
        return warning("home", f"{folder}: {free_gb:.1f} GB free", todo)
    return ok("home", f"{folder}: writable, {free_gb:.0f} GB free")


def temporary() -> Finding:
    """The folder for temporary files of Ray and planning: a short path, writable, with free space."""
    if fault := temporary_fault():
        return broken("temporary files", *fault)
    return ok("temporary files", f"{temporary_folder()[0]}: writable, with free space")


def locale() -> Finding:
    """Whether file names are read as UTF-8, and the terminal can show them."""
    names, shown = sys.getfilesystemencoding().lower(), (sys.stdout.encoding or "utf-8").lower()
    if names != "utf-8":
        says = f"file names are read as {names}: those that are not ASCII would be wrong or left out"
        return broken("locale", says, "set PYTHONUTF8=1 or LC_ALL=C.UTF-8")
    if shown not in {"utf-8", "utf8"}:
        todo = "set PYTHONIOENCODING=utf-8 or LC_ALL=C.UTF-8"
        return warning("locale", f"output is {shown}: other characters are shown as \\u....", todo)
    return ok("locale", "UTF-8")


def proxies() -> Finding:
    """Whether a proxy also gets requests to this machine, which would break Ray, MLflow and storage on it."""
    if any(scheme in getproxies() for scheme in ("http", "all")) and not proxy_bypass("127.0.0.1"):
        return broken("proxies", "a proxy is set, and 127.0.0.1 is not exempt", "set NO_PROXY=127.0.0.1,localhost")
    return ok("proxies", "none in the way")


def ray_token() -> str | None:
    """The token that Ray's clients would use here."""
    file = _token_file()
    return os.environ.get("RAY_AUTH_TOKEN") or (file.read_text().strip() if file.is_file() else None)


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token() -> Finding:
    """Ray's token: enabled, present, and private."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        says = "RAY_AUTH_MODE=disabled: anyone who reaches a port of Ray can run code"
        return warning("token", says, "set RAY_AUTH_MODE=token")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return ok("token", "in RAY_AUTH_TOKEN")
    file = _token_file()
    return _token_in(file) if file.is_file() else _no_token(file, wanted=mode == "token")


def _token_in(file: Path) -> Finding:
    if file.stat().st_mode & 0o077:
        return broken("token", f"{file} can be read by others", f"run: chmod 600 {file}")
    if not re.fullmatch(r"\S{16,}", file.read_text().strip()):
        return broken("token", f"{file} does not contain a token", _GENERATE)
    return ok("token", f"in {file}")


def _no_token(file: Path, *, wanted: bool) -> Finding:
    if wanted:
        return broken("token", f"RAY_AUTH_MODE=token, but there is no token in {file}", _GENERATE)
    return warning("token", "none: Ray starts without authentication", _GENERATE)

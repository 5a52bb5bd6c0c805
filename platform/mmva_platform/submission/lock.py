"""Selects the pins of a lock file that the platform needs at run time, for Ray's pip environment."""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmva.errors import UsageError

_EXCLUDED: Final = {"ray"}  # a job must use the cluster's own Ray


def locked_requirements(lock: Path, package: str) -> list[str]:
    """Pins of a lock file (`name==version` lines, such as constraints.txt) that a package needs, sorted.

    Includes indirect requirements, but no extras; all pins if the package is not installed here. Raises UsageError if
    the file cannot be read or a line is not a pin.
    """
    needed = closure([package])
    return sorted(pin for name, pin in _read(lock).items() if name not in _EXCLUDED and (not needed or name in needed))


def _read(lock: Path) -> dict[str, str]:
    try:
        lines = lock.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"lock {lock}: cannot be read ({error})") from None
    pins: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        pin = line.partition("#")[0].strip()
        name, separator, version = pin.partition("==")
        if pin and not (separator and name and version):
            raise UsageError(f"lock {lock}, line {number}: {pin!r} is not name==version")
        if pin:
            pins[canonicalize_name(name)] = pin
    return pins


def closure(requirements: Iterable[str]) -> set[str]:
    """Canonical names of these distributions and of all that they require, as far as they are installed here."""
    found: set[str] = set()
    waiting = [(wanted.name, frozenset(wanted.extras)) for wanted in map(Requirement, requirements)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        entry = waiting.pop()
        if entry in seen:
            continue
        seen.add(entry)
        name, extras = entry
        try:
            further = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(canonicalize_name(name))
        for text in further:
            requirement = Requirement(text)
            wanted = any(
                requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}
            )
            if wanted:
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found

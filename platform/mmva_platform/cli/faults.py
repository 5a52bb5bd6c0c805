"""Describes faults of the user's machine in one line with the place and the remedy, instead of a traceback."""

import errno
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mmva.errors import UsageError
from mmva_platform.settings import Settings, without_password

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_ROOM: Final = "free space there, or choose another place (--home, --out, TMPDIR)"
_REMEDIES: Final = {
    **dict.fromkeys(_FULL, _ROOM),
    errno.EROFS: "choose another place, or mount that one for writing",
    errno.EACCES: "change the permissions of that file or folder, or choose another place",
    errno.EPERM: "change the permissions of that file or folder, or choose another place",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "a part of that path is a file; give another path",
    errno.EEXIST: "give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "run fewer programs at once, or raise fs.file-max",
    errno.EIO: "check that disk",
    errno.ESTALE: "mount that file system again",
}
_DATABASE: Final = {
    "locked": "another process holds it: wait for that process, or find it with fuser and end it",
    "full": _ROOM,
    "readonly": "change the permissions of that file and its folder, or choose another --home",
    "unable to open": "change the permissions of its folder, or choose another --home",
    "not a database": "move that file away, or choose another --home",
    "malformed": "restore it from a backup, or choose another --home",
    "disk I/O error": "free space there, and check that disk",
}
_NEARLY_FULL: Final = 2**20  # bytes


def explain(error: BaseException, settings: Settings | None) -> str | None:
    """One line for an error that the machine has caused; None for any other error, which is a bug."""
    database = next((cause for cause in _causes(error) if isinstance(cause, sqlite3.Error)), None)
    if database is not None:
        place = f" {without_password(settings.tracking_uri)}" if settings else ""
        return f"MLflow's database{place}: {database}; {_of_database(database)}"
    todo = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    if not isinstance(error, OSError) or todo is None or not (error.filename or error.errno in _FULL):
        return None
    named = error.filename2 or error.filename  # the user chose the second name of a renaming
    place = os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else _full_places(settings)
    return f"{place}: {(error.strerror or str(error)).lower()}; {todo}"


def remedy(error: BaseException) -> str:
    """What to add to the message of a failure that a full disk or a database has caused: the remedy; else ""."""
    for cause in _causes(error):
        if isinstance(cause, sqlite3.Error):
            return f"; {_of_database(cause)}"
        if isinstance(cause, OSError) and cause.errno in _FULL and _ROOM not in str(error):
            return "" if "TMPDIR" in str(error) else f"; {_ROOM}"
    return ""


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UsageError for an argument that is not UTF-8: no table, catalog or message can hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            if sys.getfilesystemencoding().lower() != "utf-8":
                raise UsageError(f"argument {os.fsencode(argument)!r}: {locale_fault()}") from None
            raise UsageError(f"argument {os.fsencode(argument)!r}: is not UTF-8; rename that file or folder") from None


def check_home(home: Path) -> None:
    """Raise UsageError for a home that is a file, or whose path is not UTF-8."""
    whole = home.resolve()
    try:
        str(whole).encode()
    except UnicodeEncodeError:
        raise UsageError(f"home {os.fsencode(whole)!r}: is not UTF-8; rename that folder, or set --home") from None
    if whole.exists() and not whole.is_dir():
        raise UsageError(f"home {whole}: is a file; --home or MMVA_HOME names the folder of runs and caches")


def locale_fault() -> str | None:
    """What is wrong with the locale, and the remedy; None if file names are read as UTF-8."""
    found = sys.getfilesystemencoding()
    if found.lower() == "utf-8":
        return None
    return f"the locale's encoding is {found}, so file names would be read wrongly; set PYTHONUTF8=1"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _of_database(error: sqlite3.Error) -> str:
    return next(
        (words for text, words in _DATABASE.items() if text in str(error)), "set tracking.uri, or choose another --home"
    )


def _full_places(settings: Settings | None) -> str:
    """This process's places without free space; the error of a failed write does not name one."""
    home = [settings.home.resolve()] if settings else []
    try:
        temporary = [Path(os.environ.get("TMPDIR") or tempfile.gettempdir())]
    except OSError:  # nothing can be written anywhere
        temporary = []
    full = [str(place) for place in dict.fromkeys([*home, *temporary, Path.cwd()]) if _is_full(place)]
    return " and ".join(full) or "a disk"


def _is_full(place: Path) -> bool:
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free < _NEARLY_FULL

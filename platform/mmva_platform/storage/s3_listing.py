"""Listing an S3 prefix of any size with many requests at once.

S3 gives 1,000 keys a request, and each request must name where to begin. So the range of keys is divided: the first
request of a range returns a page; what lies behind that page is divided in two near the middle of the names, and both
halves are listed at the same time. A range divides until a page reaches its end.

Servers differ in their order. AWS and MinIO sort keys by their bytes. SeaweedFS sorts folder by folder, so that "a/b"
comes before "a-b". A range is only divided where both orders agree (see `_agrees`), and whole folders are listed with
Prefix, which does not depend on the order. The entries come in the server's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mmva_platform.storage.base import Entry

THREADS: Final = 16
_AHEAD: Final = 64  # ranges from the reader's position on that may be requested
_PAGES: Final = 128  # in memory, some 40 MB; up to twice as many while a large prefix is divided for the first time
_LAST: Final = "\U0010ffff"  # comes after every character that names use
_ENDS: Final = (ord("9") + 1, ord("Z") + 1, ord("z") + 1, 0x7F, 0x10FFFE)  # of kinds of characters that names use

ListPage = Callable[[dict[str, Any]], dict[str, Any]]  # one ListObjectsV2 request -> its answer


class _Found(NamedTuple):
    """The first page of a range, and the ranges behind it."""

    entries: list[Entry]
    rest: list[_Range]


@dataclass(slots=True)
class _Range:
    """Keys with a prefix, after `after`, up to and including `until` (None: to the end).

    `token` continues an earlier request and replaces `after`. `future` is the request for the first page, `found` its
    answer once the ranges behind it stand in line.
    """

    prefix: str
    after: str = ""
    until: str | None = None
    token: str | None = None
    future: Future[_Found] | None = None
    found: _Found | None = None


def walk_keys(list_page: ListPage, prefix: str, *, divide: bool = True) -> Iterator[Entry]:
    """Every key with a prefix as an Entry with its full key, in the server's order; folder markers are left out.

    Args:
        list_page: Makes one request from the arguments Prefix, StartAfter, ContinuationToken and MaxKeys.
        prefix: Start of the keys.
        divide: False for servers that list in no order; then the requests follow one another.

    Raises:
        StorageError: As `list_page`.
    """
    lister = _Lister(list_page, divide=divide)
    line = [_Range(prefix)]  # in order; the ranges behind a page follow it
    with ThreadPoolExecutor(THREADS, thread_name_prefix="list") as pool:
        try:
            while line:
                _request(line, pool, lister)
                if line[0].found is None:
                    line = _collected(line)
                else:
                    yield from line[0].found.entries
                    del line[0]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _request(line: list[_Range], pool: ThreadPoolExecutor, lister: _Lister) -> None:
    """Request the nearest ranges: one for each thread in any case, more only while there are few pages in memory.

    Without the first rule, pages far ahead could fill the memory, and the reader would wait for one request at a time.
    """
    held = sum(item.found is not None for item in line)
    running = sum(item.future is not None for item in line) - held
    for item in line[:_AHEAD]:
        if running >= THREADS and held + running >= _PAGES:
            return
        if item.future is None:
            item.future = pool.submit(lister.list_start, item)
            running += 1


def _collected(line: list[_Range]) -> list[_Range]:
    """The line after waiting for an answer: the ranges behind each new page stand after it."""
    wait([item.future for item in line if item.future and not item.found], return_when=FIRST_COMPLETED)
    renewed: list[_Range] = []
    for item in line:
        renewed.append(item)
        if item.future is not None and item.found is None and item.future.done():
            item.found = item.future.result()
            renewed.extend(item.found.rest)
    return renewed


class _Lister:
    """Lists the start of a range and divides the rest; called from many threads."""

    def __init__(self, list_page: ListPage, *, divide: bool) -> None:
        self._list_page, self._divide = list_page, divide
        self._folders: dict[str, bool] = {}  # whether there are keys below a prefix

    def list_start(self, part: _Range) -> _Found:
        """The first page of a range."""
        start = {"ContinuationToken": part.token} if part.token else {"StartAfter": part.after} if part.after else {}
        page = self._list_page({"Prefix": part.prefix, **start})
        items = page.get("Contents", [])
        inside = [item for item in items if part.until is None or item["Key"] <= part.until]
        entries = [
            Entry(item["Key"], item["Size"], item.get("ETag", "").strip('"') or None)
            for item in inside
            if not item["Key"].endswith("/")
        ]
        if not page.get("IsTruncated") or len(inside) < len(items):
            return _Found(entries, [])
        return _Found(entries, self._rest(part, [item["Key"] for item in inside], page["NextContinuationToken"]))

    def _rest(self, part: _Range, keys: list[str], token: str) -> list[_Range]:
        """The ranges behind a page with these keys: two of them, or one that continues it."""
        if self._divide and keys:
            folder = part.prefix[: part.prefix.rfind("/") + 1]
            name, slash, _ = keys[-1].removeprefix(folder).partition("/")
            below = f"{folder}{name}/"
            if not (slash and keys[0].startswith(below)):  # the page has more than one folder: divide among its names
                middle = between(name, part.until and part.until.removeprefix(folder))
                if middle is not None and self._agrees(folder, middle):
                    middle = folder + middle + _LAST  # SeaweedFS leaves out a folder whose name is StartAfter
                    return [_Range(part.prefix, keys[-1], middle), _Range(part.prefix, middle, part.until)]
            if slash:
                return [_Range(below, keys[-1]), _Range(part.prefix, below + _LAST, part.until)]
        return [_Range(part.prefix, part.after, part.until, token)]

    def _agrees(self, folder: str, name: str) -> bool:
        """Whether all servers agree on which keys of a folder come before `name`.

        They differ for the keys of a folder whose name is a start of `name` and is followed there by a character that
        sorts before the slash: with "IMG-5", keys in "IMG/" come before it on some servers and after it on others.
        """
        risky = [folder + name[:i] + "/" for i in range(1, len(name)) if name[i] < "/"]
        return not any(self._has_keys(prefix) for prefix in risky)

    def _has_keys(self, prefix: str) -> bool:
        if prefix not in self._folders:
            self._folders[prefix] = bool(self._list_page({"Prefix": prefix, "MaxKeys": 1}).get("Contents"))
        return self._folders[prefix]


def between(low: str, high: str | None) -> str | None:
    """A short name near the middle between two names, of use to divide them; None if there is none.

    It is greater than "low/...", it has no slash, and every name that begins with it is less than `high`. Only names of
    the same kind as `low` are divided: those that go on with a digit, a capital or a small letter.
    """
    for i in range(len(low) + 1):
        floor = ord(low[i]) if i < len(low) else ord("/")
        top = next(end for end in _ENDS if floor < end or end == _ENDS[-1])
        if high is not None and high[:i] == low[:i]:
            top = min(top, ord(high[i]) - 1) if i < len(high) else floor
        code = (floor + top + 1) // 2
        code += code == ord("/")
        code = 0xE000 if 0xD800 <= code < 0xE000 else code
        if floor < code <= top:
            return low[:i] + chr(code)
    return None

"""Listing an S3 prefix of any size with many requests at once.

A request returns 1,000 keys and must name where to begin. So the range of keys is divided: the first request of a range
returns a page; the keys after that page are divided in two near the middle of the names, and both halves are listed at
the same time. Ranges are divided until a page reaches the end of its range.

Servers differ in their order. AWS and MinIO sort keys by their bytes. SeaweedFS sorts folder by folder, so that "a/b"
comes before "a-b". Both orders agree on the keys between the last key of a page and a name with the same start (see
`between`), and a whole folder is listed by its prefix. The entries come in the server's order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mmva_platform.storage.base import Entry

THREADS: Final = 16
_AHEAD: Final = 64  # ranges that are requested or in memory ahead of the reader; a page takes about .3 MB
_LAST: Final = "\U0010ffff"  # sorts after every character of names
_ENDS: Final = (ord("9") + 1, ord("Z") + 1, ord("z") + 1, 0x7F, 0x10FFFE)  # ends of the kinds of characters of names

ListPage = Callable[[dict[str, Any]], dict[str, Any]]  # one ListObjectsV2 request -> its answer


class _Found(NamedTuple):
    entries: list[Entry]
    rest: list[_Range]


@dataclass(slots=True)
class _Range:
    """Keys with a prefix, after `after` and before `until` (None: to the end).

    `token` continues an earlier request and replaces `after`. `future` is the request for the first page, `found` its
    answer once the ranges after it are in the queue.
    """

    prefix: str
    after: str = ""
    until: str | None = None
    token: str | None = None
    future: Future[_Found] | None = None
    found: _Found | None = None


def walk_keys(list_page: ListPage, prefix: str, *, divide: bool = True) -> Iterator[Entry]:
    """Every key with a prefix as an Entry with its full key, in the server's order; folder markers are left out.

    `list_page` makes one request from Prefix, StartAfter and ContinuationToken; its errors are raised. With `divide`
    False, for servers that list in no order, requests are made one after the other.
    """
    queue = [_Range(prefix)]  # in the order of the keys
    with ThreadPoolExecutor(THREADS, thread_name_prefix="list") as pool:
        try:
            while queue:
                _request(queue, pool, list_page, divide)
                if queue[0].found is None:
                    queue = _collected(queue)
                else:
                    yield from queue[0].found.entries
                    del queue[0]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _request(queue: list[_Range], pool: ThreadPoolExecutor, list_page: ListPage, divide: bool) -> None:  # noqa: FBT001
    """Request the next ranges. Later ones must wait, because their pages would fill the memory."""
    for item in queue[:_AHEAD]:
        if item.future is None:
            item.future = pool.submit(_list_start, item, list_page, divide)


def _collected(queue: list[_Range]) -> list[_Range]:
    """Wait for an answer, and return the queue with the ranges after each new page."""
    wait([item.future for item in queue if item.future and not item.found], return_when=FIRST_COMPLETED)
    renewed: list[_Range] = []
    for item in queue:
        renewed.append(item)
        if item.future is not None and item.found is None and item.future.done():
            item.found = item.future.result()
            renewed.extend(item.found.rest)
    return renewed


def _list_start(part: _Range, list_page: ListPage, divide: bool) -> _Found:  # noqa: FBT001 - submitted to a pool
    """The first page of a range, and the ranges after it."""
    start = {"ContinuationToken": part.token} if part.token else {"StartAfter": part.after} if part.after else {}
    page = list_page({"Prefix": part.prefix, **start})
    items = page.get("Contents", [])
    inside = [item for item in items if part.until is None or item["Key"] < part.until]
    entries = [
        Entry(item["Key"], item["Size"], item.get("ETag", "").strip('"') or None)
        for item in inside
        if not item["Key"].endswith("/")
    ]
    if not page.get("IsTruncated") or len(inside) < len(items):
        return _Found(entries, [])
    rest = _divided(part, inside[0]["Key"], inside[-1]["Key"]) if divide and inside else []
    return _Found(entries, rest or [_Range(part.prefix, part.after, part.until, page["NextContinuationToken"])])


def _divided(part: _Range, first: str, last: str) -> list[_Range]:
    """Two ranges for the keys after a page with these first and last keys; empty if they cannot be divided."""
    folder = part.prefix[: part.prefix.rfind("/") + 1]
    name, slash, _ = last.removeprefix(folder).partition("/")
    below = f"{folder}{name}/"
    if not (slash and first.startswith(below)):  # the page has more than one folder: divide among its names
        middle = between(name, part.until and part.until.removeprefix(folder))
        if middle is not None:
            middle = folder + middle + _LAST  # SeaweedFS omits a folder whose name is StartAfter
            return [_Range(part.prefix, last, middle), _Range(part.prefix, middle, part.until)]
    if slash:
        return [_Range(below, last), _Range(part.prefix, below + _LAST, part.until)]
    return []


def between(low: str, high: str | None) -> str | None:
    """A short name near the middle of two names that divides the range between them; None if there is none.

    It is greater than "low/...", has no slash, and every name that begins with it is less than `high`. Only names of
    the same kind as `low` are divided: those that continue with a digit, a capital or a small letter.
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

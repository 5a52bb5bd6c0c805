"""Ogg files as rows of links: consecutive streams in one file, each with its own parameters (RFC 3533)."""

from __future__ import annotations

import re

_PAGE_HEADER = 27
# Pages that begin a stream; those of one link are adjacent at its start.
_FIRST_PAGES = re.compile(rb"OggS\0[\x02\x03\x06\x07]", re.DOTALL)


def ogg_links(data: bytes) -> list[bytes]:
    """The links of a chain, each a file of its own; the data itself if there is only one."""
    starts: list[int] = []
    expected = -1
    for match in _FIRST_PAGES.finditer(data):
        if match.start() != expected:
            starts.append(match.start())
        expected = page_end(data, match.start())
    if len(starts) < 2:
        return [data]
    return [data[start:stop] for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]


def page_end(data: bytes, page: int) -> int:
    """Where this page ends by its header, which may be after the data's end."""
    segments = data[page + 26] if page + 26 < len(data) else 0
    return page + _PAGE_HEADER + segments + sum(data[page + _PAGE_HEADER : page + _PAGE_HEADER + segments])

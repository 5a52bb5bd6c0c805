"""Listing by many requests at once finds every key once, on servers with either order of keys."""

from __future__ import annotations

import bisect
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmva_platform.storage import StorageError, s3_listing
from mmva_platform.storage.s3_listing import THREADS, between, walk_keys


def by_bytes(key: str) -> Any:
    """The order of AWS and MinIO."""
    return key.encode()


def by_folders(key: str) -> Any:
    """The order of SeaweedFS."""
    return [part.encode() for part in key.split("/")]


class Server:
    """Answers ListObjectsV2 over made-up keys; its pages have `page` keys and come after `latency_s`."""

    def __init__(self, keys: Iterable[str], order: Callable[[str], Any], page: int, latency_s: float = 0.0) -> None:
        self.keys = sorted(keys, key=order)
        self._sorted = [order(key) for key in self.keys]
        self.order, self.page, self.latency_s = order, page, latency_s
        self.lock = threading.Lock()
        self.running = 0
        self.running_at_start: list[int] = []  # of each request, itself included

    def list_page(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.running += 1
            self.running_at_start.append(self.running)
        time.sleep(self.latency_s)
        with self.lock:
            self.running -= 1
        first = int(request.get("ContinuationToken", 0))
        if after := request.get("StartAfter"):
            first = bisect.bisect_right(self._sorted, self.order(after))
            while self.order is by_folders and first < len(self.keys) and self.keys[first].startswith(f"{after}/"):
                first += 1  # as SeaweedFS does
        wanted = min(self.page, request.get("MaxKeys", self.page))
        prefix = request["Prefix"]
        numbers = (i for i in range(first, len(self.keys)) if self.keys[i].startswith(prefix))
        found = list(itertools.islice(numbers, wanted + 1))
        contents = [{"Key": self.keys[i], "Size": i, "ETag": f'"{i}"'} for i in found[:wanted]]
        more = len(found) > wanted
        return {"Contents": contents, "IsTruncated": more} | ({"NextContinuationToken": str(found[-1])} if more else {})

    def walk(self, prefix: str = "", *, divide: bool = True) -> list[str]:
        return [entry.path for entry in walk_keys(self.list_page, prefix, divide=divide)]


NAME = st.text(st.sampled_from("ab-/.0Z é\ue000\U0001f600"), min_size=1, max_size=6).filter(lambda key: key[-1] != "/")


def folders_of(keys: Iterable[str]) -> set[str]:
    return {key[: i + 1] for key in keys for i, character in enumerate(key) if character == "/"}


@settings(max_examples=200)
@given(
    keys=st.sets(NAME, max_size=60), prefix=st.sampled_from(["", "a", "a/", "ab-"]),
    order=st.sampled_from([by_bytes, by_folders]), page=st.integers(1, 7),
)  # fmt: skip
def test_every_key_is_found_once_in_the_servers_order(
    keys: set[str], prefix: str, order: Callable[[str], Any], page: int
) -> None:
    if order is by_folders:  # such a server has no empty names, and no file of a folder's name
        keys = {key for key in keys if "" not in key.split("/")}
        keys -= {folder[:-1] for folder in folders_of(keys)}
    server = Server(keys, order, page)
    expected = [key for key in server.keys if key.startswith(prefix)]
    assert server.walk(prefix) == expected
    assert server.walk(prefix, divide=False) == expected


SHAPES = {
    "one flat folder of numbers": [f"media/photos/img{i:06}.jpg" for i in range(20_000)],
    "one flat folder of hex names": [f"m/{i * 2654435761 % 2**32:08x}.jpg" for i in range(20_000)],
    "names that all share a hyphen": [f"m/IMG-{i:06}.jpg" for i in range(20_000)],
    "a folder for each day": [f"m/{y}/{d:03}/{i}.jpg" for y in range(2022, 2026) for d in range(99) for i in range(50)],
    "a folder for each file": [f"m/{i:05}/track.mp3" for i in range(20_000)],
    "one large folder among small ones": [
        *(f"m/{i:03}/a.jpg" for i in range(300)), *(f"m/150x/{i:05}.jpg" for i in range(20_000))
    ],
}  # fmt: skip


@pytest.mark.parametrize("order", [by_bytes, by_folders])
@pytest.mark.parametrize("shape", SHAPES)
def test_large_prefixes_are_listed_by_many_requests_at_once(shape: str, order: Callable[[str], Any]) -> None:
    server = Server(SHAPES[shape], order, page=100, latency_s=0.01)
    assert server.walk("m") == server.keys
    assert max(server.running_at_start) == THREADS
    assert statistics.mean(server.running_at_start) > 5
    assert len(server.running_at_start) < 2.2 * len(server.keys) / server.page + 60


@pytest.mark.parametrize("shape", ["one flat folder of hex names", "a folder for each file"])
def test_memory_is_bounded_however_large_the_prefix(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    collected = s3_listing._collected

    def watched(line: list[Any]) -> list[Any]:
        held.append(sum(item.found is not None for item in line))
        return collected(line)

    monkeypatch.setattr(s3_listing, "_collected", watched)
    server = Server(SHAPES[shape], by_bytes, page=5, latency_s=0.0005)
    assert server.walk("m") == server.keys
    assert max(held) < 350  # of 4,000 pages


def test_a_reader_that_stops_ends_the_requests() -> None:
    server = Server(SHAPES["one flat folder of hex names"], by_bytes, page=10)
    walk = walk_keys(server.list_page, "m")
    assert next(walk).path == server.keys[0]
    time.sleep(0.1)
    walk.close()
    assert len(server.running_at_start) < 400  # of 2,000


def test_an_error_of_any_request_ends_the_listing() -> None:
    server = Server(SHAPES["one flat folder of hex names"], by_bytes, page=100)

    def fails_later(request: dict[str, Any]) -> dict[str, Any]:
        if len(server.running_at_start) == 50:
            raise StorageError("the server is gone")
        return server.list_page(request)

    with pytest.raises(StorageError, match="is gone"):
        list(walk_keys(fails_later, "m"))


@given(low=st.text(max_size=5), high=st.none() | st.text(min_size=1, max_size=5))
def test_a_name_between_two_names(low: str, high: str | None) -> None:
    low = low.replace("/", "")
    if high is not None and (high := high.replace("/", "")) <= low:
        return
    middle = between(low, high)
    if middle is not None:
        assert f"{low}/\U0010ffff".encode() < middle.encode()
        assert "/" not in middle
        assert high is None or f"{middle}\U0010ffff".encode() < high.encode()


def test_the_middle_is_near_the_middle() -> None:
    assert between("img000", "img999") == "img4"
    assert between("2024", "2026") == "2025"
    assert between("2024", "2025") == "20245"
    assert between("a", "b") == "a5"
    assert between("9", None) == ":"
    assert between("a", "a0\U0010ffff") is None

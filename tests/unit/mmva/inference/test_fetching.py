"""Reading ahead within a bound on bytes, through outages, and with faults of the environment told apart from items'."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mmva.errors import EnvironmentFault, MediaError
from mmva.inference import fetching
from mmva.inference.fetching import THREADS, Fetching, Outage, Request, prefetched
from mmva.inference.items import Item

MIB = 2**20


class Held:
    """Counts the bytes that fetches have given out and that still live."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self.fetched = self.peak = self.now = 0

    def fetch(self, _request: Request) -> bytes:
        with self._lock:
            self.fetched += 1
            self.now += 1
            self.peak = max(self.peak, self.now)
        return bytes(self._size)

    def consume(self, futures: Iterator[Any]) -> None:
        for future in futures:
            assert len(future.result()) == self._size
            del future
            time.sleep(0.02)  # the others have time to arrive
            with self._lock:
                self.now -= 1


@pytest.mark.parametrize("size", [None, 6 * MIB])
def test_the_bound_holds_for_the_real_bytes_whatever_is_known(size: int | None) -> None:
    held = Held(6 * MIB)
    with ThreadPoolExecutor(THREADS) as pool:
        requests = [Request(str(number), size) for number in range(8)]
        held.consume(prefetched(held.fetch, requests, pool, held_bytes=7 * MIB))
    assert held.fetched == 8
    assert held.peak == 1, "two files of 6 MiB pass a bound of 7 MiB"


def test_small_files_of_unknown_size_are_fetched_many_at_a_time() -> None:
    started, enough = [], threading.Event()

    def fetch(request: Request) -> bytes:
        started.append(request.uri)
        if len(started) >= 1 + THREADS:
            enough.set()
        assert request.uri == "0" or enough.wait(20), "not all requests were in flight"
        return b"12345"

    with ThreadPoolExecutor(THREADS) as pool:
        futures = prefetched(fetch, [Request(str(number), None) for number in range(100)], pool)
        assert [future.result() for future in futures] == [b"12345"] * 100


def test_a_file_above_the_bound_is_fetched_alone() -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        futures = prefetched(lambda _: bytes(100), [Request("a", 100), Request("b", 100)], pool, held_bytes=10)
        assert [len(future.result()) for future in futures] == [100, 100]


def test_nothing_more_is_fetched_for_a_caller_that_stopped() -> None:
    answer = threading.Event()
    asked: list[str] = []

    def fetch(request: Request) -> bytes:
        asked.append(request.uri)
        answer.wait()
        return b""

    with ThreadPoolExecutor(4) as pool:
        futures = prefetched(fetch, [Request(str(number), 1) for number in range(20)], pool, in_flight=8)
        next(futures)
        futures.close()  # type: ignore[attr-defined]
        answer.set()
    assert len(asked) <= 4


# --- outages


class AwayError(OSError):
    """Storage gives no answer."""


class ExpiredError(PermissionError):
    """Credentials that were valid when the run began."""

    environment = True


def items(count: int) -> list[Item]:
    return [Item(str(number), f"s3://b/{number}", "image") for number in range(count)]


def reader(fetch: Callable[[str], bytes], patience_s: float = 0.0) -> Fetching:
    return Fetching(
        lambda uri, _size, _most: fetch(uri),
        max_bytes=100,
        is_outage=lambda error: isinstance(error, AwayError),
        patience_s=patience_s,
    )


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(fetching, "_LONGEST_WAIT_S", 0.05)


def test_only_the_item_without_an_answer_is_fetched_again() -> None:
    asked: list[str] = []

    def fetch(uri: str) -> bytes:
        asked.append(uri)
        if uri == "s3://b/2" and asked.count(uri) < 4:
            raise AwayError("no answer")
        return uri.encode()

    found = dict((item.id, data) for item, data in reader(fetch, 20).read(items(5)))  # noqa: C402
    assert found == {str(number): f"s3://b/{number}".encode() for number in range(5)}
    assert sorted(asked) == sorted([f"s3://b/{number}" for number in range(5)] + ["s3://b/2"] * 3)


def test_an_outage_begins_with_its_own_first_failure() -> None:
    """Two short outages, 200 s apart, are not one of 200 s."""
    now = [0.0]
    outage = Outage(patience_s=120, clock=lambda: now[0])
    assert not outage.lasts_too_long(AwayError("no answer"))
    now[0] = 1.0
    outage.end()
    now[0] = 200.0
    assert not outage.lasts_too_long(AwayError("no answer"))
    now[0] = 320.0
    assert outage.lasts_too_long(AwayError("no answer"))


def test_an_outage_may_end_while_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread gets its answer while this one logs that there is none."""
    outage = Outage(patience_s=120)
    monkeypatch.setattr("mmva.inference.fetching.logger.warning", lambda *_text: outage.end())
    assert not outage.lasts_too_long(AwayError("no answer"))


def test_an_outage_that_lasts_too_long_is_raised() -> None:
    asked: list[str] = []

    def fetch(uri: str) -> bytes:
        asked.append(uri)
        raise AwayError("no answer")

    with pytest.raises(AwayError, match="no answer"):
        list(reader(fetch, 0.5).read(items(40)))
    assert len(asked) > len(set(asked)), "it is asked again while the outage may end"


def test_progress_is_reported_while_the_caller_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_REPORT_S", 0.05)
    steps: list[str] = []

    def fetch(uri: str, _size: int | None, _most: int) -> bytes:
        time.sleep(0.5)
        return b""

    list(Fetching(fetch, max_bytes=1, on_progress=steps.append).read(items(1)))
    assert set(steps) == {"fetch"}
    assert len(steps) > 3


# --- faults of the environment


def missing(uri: str) -> bytes:
    raise FileNotFoundError(uri)


def denied(uri: str) -> bytes:
    raise PermissionError(uri)


def expired(uri: str) -> bytes:
    raise ExpiredError("token expired")


def too_large(uri: str) -> bytes:
    raise MediaError("too-many-bytes", "9 bytes, the limit is 8", stage="fetch")


@pytest.mark.parametrize(("fetch", "code"), [(missing, "not-found"), (denied, "access-denied")])
def test_a_cause_that_all_fetches_share_is_the_environments(fetch: Any, code: str) -> None:
    with pytest.raises(EnvironmentFault, match=rf"all 8 files fail with {code}, first s3://b/0"):
        list(reader(fetch).read(items(8)))


@pytest.mark.parametrize("case", ["few", "one works", "two causes", "known to work", "the files' own"])
def test_other_failures_are_the_items_own(case: str) -> None:
    def fetch(uri: str) -> bytes:
        number = int(uri.rpartition("/")[2])
        if case == "one works" and number == 3:
            return b""
        if case == "two causes" and number == 3:
            return denied(uri)
        return too_large(uri) if case == "the files' own" else missing(uri)

    all_items = items(7 if case == "few" else 9)
    done = list(reader(fetch).read(all_items, items_at_fault=case == "known to work"))
    assert len(done) == (case == "one works")
    assert sum(item.error is not None for item in all_items) == len(all_items) - len(done)


def test_expired_credentials_are_the_environments_at_once() -> None:
    all_items = items(3)
    with pytest.raises(EnvironmentFault, match=r"s3://b/1: ExpiredError: token expired"):
        list(reader(lambda uri: expired(uri) if uri == "s3://b/1" else b"").read(all_items))
    assert all(item.error is None for item in all_items)


def test_a_bucket_that_is_missing_costs_its_own_items_only_where_others_can_be_read() -> None:
    all_items = items(3)
    fetch = reader(lambda uri: expired(uri) if uri == "s3://b/1" else b"")
    assert len(list(fetch.read(all_items, items_at_fault=True))) == 2
    assert all_items[1].error is not None
    assert all_items[1].error.code == "access-denied"
    with pytest.raises(EnvironmentFault):  # with expired credentials nothing can be read
        list(reader(expired).read(items(3), items_at_fault=True))

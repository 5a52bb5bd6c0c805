from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmva.errors import UsageError
from mmva.media.windows import stream_windows, window_bounds, windows


@given(st.integers(1, 5000), st.integers(1, 400), st.integers(1, 400))
def test_windows_hold_every_sample_and_are_neither_short_nor_long(samples: int, length: int, hop: int) -> None:
    hop = min(hop, length)
    bounds = window_bounds(samples, length, hop)
    held = np.zeros(samples, bool)
    for start, stop in bounds:
        held[start:stop] = True
        assert samples < length or length / 2 <= stop - start < length * 1.5
    assert held.all()
    assert [start for start, _ in bounds] == list(range(0, len(bounds) * hop, hop))
    assert bounds[-1][1] == samples


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (5, [(0, 5)]),
        (10, [(0, 10)]),
        (14, [(0, 14)]),  # a tail of 4 joins
        (15, [(0, 10), (10, 15)]),  # a tail of 5 stands alone
        (24, [(0, 10), (10, 24)]),
    ],
)
def test_the_tail(samples: int, expected: list[tuple[int, int]]) -> None:
    assert window_bounds(samples, 10, 10) == expected


def test_overlapping_windows_are_views_with_their_start_in_seconds() -> None:
    samples_T = np.arange(40, dtype=np.float32)
    start_s_W, cut = windows(samples_T, 10, 2.0, 1.0)
    assert start_s_W.tolist() == [0.0, 1.0, 2.0]
    assert start_s_W.dtype == np.float64
    assert [part.tolist() for part in cut] == [list(range(s, s + 20)) for s in (0, 10, 20)]
    assert all(np.shares_memory(part, samples_T) for part in cut)


@pytest.mark.parametrize(("length_s", "hop_s"), [(0, 0), (1, 0), (1, 2), (1, -1)])
def test_hops_that_would_skip_samples_are_refused(length_s: float, hop_s: float) -> None:
    with pytest.raises(UsageError, match="hop"):
        windows(np.zeros(100, np.float32), 10, length_s, hop_s)


@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 60), st.integers(1, 90))
def test_streamed_windows_are_the_windows_of_the_whole(samples: int, length: int, hop: int, block: int) -> None:
    hop = min(hop, length)
    samples_T = np.arange(samples, dtype=np.float32)
    blocks = [samples_T[first : first + block] for first in range(0, samples, block)]
    streamed = list(stream_windows(blocks, 1, length, hop))
    start_s_W, cut = windows(samples_T, 1, length, hop)
    assert [start for start, _ in streamed] == start_s_W.tolist()
    assert [piece.tolist() for _, piece in streamed] == [piece.tolist() for piece in cut]


def test_an_hour_is_streamed_in_the_memory_of_some_windows() -> None:
    rate, held = 16_000, []
    blocks = (np.zeros(rate, np.float32) for _ in range(3600))
    tracemalloc.start()
    count = 0
    for _, piece in stream_windows(blocks, rate, 3.0, 1.5):
        count += 1
        held.append(len(piece))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2399
    assert max(held) == 3 * rate
    assert peak < 4 * 20 * rate  # 20 s of samples; the hour has 3,600


def test_no_samples_no_windows() -> None:
    assert list(stream_windows([np.empty(0, np.float32)], 10, 1.0, 1.0)) == []

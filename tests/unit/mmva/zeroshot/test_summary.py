"""Segments of a curve: no other choice within the budget holds more change, and known changes are hit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmva.errors import UsageError
from mmva.zeroshot.summary import choose_segments, most_change, spread, steps_of_change


def every_choice(count: int, budget: int, least: int, apart: int) -> list[tuple[int, ...]]:
    """All sets of steps that are runs of at least `least`, so far apart, and at most `budget` in all."""
    found = []
    for bits in itertools.product((0, 1), repeat=count):
        runs = [(value, len(list(group))) for value, group in itertools.groupby(bits)]
        between = [length for value, length in runs[1:-1] if not value]
        if sum(bits) <= budget and all(length >= least for value, length in runs if value):
            found += [bits] if all(length >= apart for length in between) else []
    return found


@settings(deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=9),
    budget=st.integers(1, 9),
    least=st.integers(1, 4),
    apart=st.integers(1, 3),
)
def test_no_other_choice_holds_more(weights: list[float], budget: int, least: int, apart: int) -> None:
    weight_S = np.array(weights)
    runs = most_change(weight_S, budget, least, apart)
    held = sum(weight_S[start:stop].sum() for start, stop in runs)
    best = max(float(np.dot(bits, weight_S)) for bits in every_choice(len(weights), budget, least, apart))
    assert held == pytest.approx(best)
    assert sum(stop - start for start, stop in runs) <= budget
    assert all(stop - start >= least for start, stop in runs)
    assert all(one[1] + apart <= other[0] for one, other in itertools.pairwise(runs))


def moods(spans: list[tuple[float, tuple[float, float]]], step_s: float = 0.5, noise: float = 0.0) -> tuple:
    """A curve that stays at each point for so many seconds."""
    count = round(sum(seconds for seconds, _ in spans) / step_s)
    time_W = (np.arange(count) + 0.5) * step_s
    ends = np.cumsum([seconds for seconds, _ in spans])
    va_W2 = np.array([va for _, va in spans])[np.searchsorted(ends, time_W)]
    return time_W, va_W2 + np.random.default_rng(0).normal(0, noise, va_W2.shape), float(ends[-1])


CALM, TENSE, HAPPY = (0.75, 0.2), (0.2, 0.85), (0.85, 0.7)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_every_change_stands_in_the_middle_of_a_segment(noise: float) -> None:
    time_W, va_W2, duration_s = moods([(30, CALM), (25, TENSE), (40, HAPPY), (25, CALM)], noise=noise)
    segments = choose_segments(time_W, va_W2, duration_s, 12.0)
    assert sum(one.end_s - one.start_s for one in segments) <= 12.0
    for change_s in (30, 55, 95):
        (hit,) = [one for one in segments if one.start_s < change_s < one.end_s]
        if not noise:
            assert (hit.start_s + hit.end_s) / 2 == pytest.approx(change_s, abs=0.5)
    if not noise:
        assert len(segments) == 3
        assert sum(one.change for one in segments) == pytest.approx(1)


def test_a_small_budget_takes_the_greatest_change() -> None:
    time_W, va_W2, duration_s = moods([(30, CALM), (25, HAPPY), (40, TENSE), (25, (0.3, 0.8))])
    (only,) = choose_segments(time_W, va_W2, duration_s, 3.0)
    assert only.start_s < 55 < only.end_s
    (short,) = choose_segments(time_W, va_W2, duration_s, 1.0)
    assert short.start_s < 55 < short.end_s
    assert short.end_s - short.start_s == 1.0
    (blink,) = choose_segments(time_W, va_W2, duration_s, 0.2)  # less than a step of the curve
    assert blink.start_s < 55 < blink.end_s
    assert blink.end_s - blink.start_s == pytest.approx(0.2)


def test_more_seconds_never_hold_less() -> None:
    rng = np.random.default_rng(4)
    va_W2 = np.clip(0.5 + np.cumsum(rng.normal(0, 0.03, (240, 2)), axis=0), 0, 1)
    time_W = (np.arange(240) + 0.5) * 0.5
    held = [sum(one.change for one in choose_segments(time_W, va_W2, 120, seconds)) for seconds in (5, 15, 40, 80, 119)]
    assert all(later > earlier for earlier, later in itertools.pairwise(held))
    assert choose_segments(time_W, va_W2, 120, 120)[0].change == 1


def test_a_single_outlier_is_no_change() -> None:
    time_W, va_W2, duration_s = moods([(20, CALM), (20, (0.6, 0.35))])
    va_W2[10] = (0.0, 1.0)
    (only,) = choose_segments(time_W, va_W2, duration_s, 3.0)
    assert only.start_s < 20 < only.end_s


def test_without_change_the_beginning() -> None:
    time_W, va_W2, duration_s = moods([(60, CALM)])
    (only,) = choose_segments(time_W, va_W2, duration_s, 8.0)
    assert (only.start_s, only.end_s, only.change) == (0.0, 8.0, 0.0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_curves_of_few_points(count: int) -> None:
    (only,) = choose_segments(np.arange(count), np.full((count, 2), 0.5), 9.0, 4.0)
    assert (only.start_s, only.end_s) == (0.0, 4.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_budget_is_positive(seconds: float) -> None:
    with pytest.raises(UsageError, match="more than 0 seconds"):
        choose_segments([0, 1, 2], np.full((3, 2), 0.5), 3.0, seconds)


def test_spreading_keeps_the_sum_and_the_middle() -> None:
    change_S = np.zeros(21)
    change_S[10] = 1
    spread_S = spread(change_S, 6)
    assert spread_S.sum() == pytest.approx(1)
    assert spread_S.argmax() == 10
    assert spread_S.tolist() == spread_S[::-1].tolist()
    assert steps_of_change(np.repeat([[0.0, 0.0], [0.3, 0.4]], 5, axis=0)).sum() == pytest.approx(0.5)

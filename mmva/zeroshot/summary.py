"""Choose the moments of a video that matter: the segments with most of its curve's change within a time budget.

The change between two neighbouring points of the curve is their distance in the VA plane. A viewer needs to see the
time before and after a change, so each change is spread over a second or two (a triangle), which puts it into the
middle of its segment. Dynamic programming then finds the segments with the most change within the budget that are not
too short, and at least a second apart.

Shapes: W points of the curve, S = W - 1 steps between them, M segments.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.errors import UsageError

SHORTEST_S: Final = 3.0  # of a segment
_APART_S: Final = 1.0  # smallest gap between two segments; a shorter one looks like a fault
_JITTER: Final = 3  # points of the running median that removes single outliers


@dataclass(frozen=True)
class Segment:
    """A part of the video in seconds, and its share of the curve's total change, [0, 1]."""

    start_s: float
    end_s: float
    change: float


def point_of(
    segment: Segment, time_s_W: NDArray[np.float64], va_W2: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int]:
    """Mean of a curve over a segment, [2], and the index of the curve's point nearest to the segment's middle.

    If the segment contains no point, the mean is that one point.
    """
    inside_W = (time_s_W >= segment.start_s) & (time_s_W <= segment.end_s)
    middle = int(np.abs(time_s_W - (segment.start_s + segment.end_s) / 2).argmin())
    return va_W2[inside_W if inside_W.any() else [middle]].mean(axis=0), middle


def choose_segments(
    time_s_W: ArrayLike, va_W2: ArrayLike, duration_s: float, budget_s: float, shortest_s: float = SHORTEST_S
) -> list[Segment]:
    """The segments with most of the curve's change within the budget, in order.

    Their total length is at most the budget; with a budget as long as the video, it is the whole video. Earlier moments
    win among equally good ones, so a curve without change gives the beginning. Points are evenly spaced and ascending.
    No segment is shorter than `shortest_s`, or than a shorter budget. Raises UsageError if the budget is not above 0.
    """
    if not budget_s > 0:
        raise UsageError(f"seconds {budget_s:g}: a summary needs more than 0 seconds")
    time_W, va_W2 = np.asarray(time_s_W, np.float64), np.asarray(va_W2, np.float64)
    if budget_s >= duration_s:
        return [Segment(0.0, duration_s, 1.0)]
    change_S = steps_of_change(va_W2) if len(va_W2) else np.zeros(0)
    total = float(change_S.sum())
    if not total > 0:
        return [Segment(0.0, budget_s, 0.0)]
    step_s = float(np.median(np.diff(time_W)))
    if budget_s < step_s:
        steepest = int(change_S.argmax())
        begin_s = float(time_W[steepest : steepest + 2].mean()) - budget_s / 2
        return [Segment(begin_s, begin_s + budget_s, float(change_S[steepest]) / total * budget_s / step_s)]
    budget = int(budget_s / step_s + 1e-9)
    least = min(budget, max(1, round(shortest_s / step_s)))
    apart = max(1, round(_APART_S / step_s))
    return [
        Segment(float(time_W[start]), float(time_W[stop]), float(change_S[start:stop].sum()) / total)
        for start, stop in most_change(spread(change_S, least), budget, least, apart)
    ]


def steps_of_change(va_W2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance [S] from each point of the curve to the next, after a running median, which keeps lasting changes."""
    padded = np.pad(va_W2, ((_JITTER // 2, _JITTER // 2), (0, 0)), mode="edge")
    smooth_W2 = np.median(np.lib.stride_tricks.sliding_window_view(padded, _JITTER, axis=0), axis=-1)
    return np.linalg.norm(np.diff(smooth_W2, axis=0), axis=1)


def spread(change_S: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Spread each step's change over a triangle of `width` steps around it; the sum only changes at the ends."""
    half = np.arange(1, (width + 1) // 2 + 1, dtype=np.float64)
    kernel = np.concatenate([half, half[::-1][1:]])
    kernel /= kernel.sum()
    middle = len(kernel) // 2
    return np.convolve(change_S, kernel)[middle : middle + len(change_S)]


def most_change(weight_S: NDArray[np.float64], budget: int, least: int, apart: int = 1) -> list[tuple[int, int]]:
    """The runs of steps with the greatest sum of weights: at most `budget` steps in total, and `least` or more per run.

    Returns start and end (exclusive) of each run, in order and at least `apart` steps from each other.

    Exact: best[u] is the greatest sum of the steps so far with u of them used; `inside` is the same with a run that
    includes the last step and is long enough. Needs memory for S times budget decisions.
    """
    count = len(weight_S)
    if budget < least:
        return []
    sum_S1 = np.concatenate([[0.0], np.cumsum(weight_S)])
    best = np.zeros((count + 1, budget + 1))
    inside = np.full(budget + 1, -np.inf)
    ends = np.zeros((count + 1, budget + 1), bool)  # the best choice has a run that ends here
    longer = np.zeros((count + 1, budget + 1), bool)  # that run has more than `least` steps
    for stop in range(1, count + 1):
        continued = np.concatenate([[-np.inf], inside[:-1]]) + weight_S[stop - 1]
        begun = np.full(budget + 1, -np.inf)
        if stop >= least:
            begun[least:] = (
                best[max(0, stop - least - apart), : budget + 1 - least] + sum_S1[stop] - sum_S1[stop - least]
            )
        longer[stop] = continued > begun
        inside = np.maximum(continued, begun)
        # Prefer the earlier of equal choices: a run that ends now must be better by more than rounding.
        ends[stop] = inside > best[stop - 1] + 1e-12
        best[stop] = np.where(ends[stop], inside, best[stop - 1])
    return _traced(best, ends, longer, least, apart)


def _traced(
    best: NDArray[np.float64], ends: NDArray[np.bool_], longer: NDArray[np.bool_], least: int, apart: int
) -> list[tuple[int, int]]:
    """The runs of the best choice, found backwards from the last step."""
    stop, used = len(best) - 1, int(best[-1].argmax())
    runs: list[tuple[int, int]] = []
    while stop > 0 and used > 0:
        if not ends[stop, used]:
            stop -= 1
            continue
        start = stop
        while longer[start, used]:
            start, used = start - 1, used - 1
        start, used = start - least, used - least
        runs.append((start, stop))
        stop = max(0, start - apart)
    return runs[::-1]

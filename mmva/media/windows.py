"""Long audio as a row of windows that together hold every sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmva.errors import UsageError

# Everything that cuts music cuts it like this, so that a model sees in service what it saw in training. Near the 2 s
# clips that IMEMNet-C labels, and exactly what musicnn was trained on: shorter ones cost it as much.
WINDOW_S: Final = 3.0
HOP_S: Final = 1.5


def window_bounds(samples: int, length: int, hop: int) -> list[tuple[int, int]]:
    """First and last-plus-one sample of each window.

    Windows start every `hop` samples and hold `length` of them. What is left at the end becomes a window of its own if
    it is at least half as long as the others, and else joins the last one, so windows are between 1/2 and 3/2 of the
    length; audio shorter than a window is one window.

    Args:
        samples: Number of samples, at least 1.
        length: Samples of a window, at least 1.
        hop: Samples between the starts of two windows, 1 to `length`, so that none is skipped.

    Raises:
        UsageError: If length and hop are no such numbers.
    """
    if not 0 < hop <= length:
        raise UsageError(f"window hop must be above 0 and at most the window's length, got hop {hop}, length {length}")
    full = max(1, 1 + (samples - length) // hop)
    bounds = [(index * hop, index * hop + length) for index in range(full)]
    tail = samples - full * hop
    if bounds[-1][1] < samples and 2 * tail >= length:
        bounds.append((full * hop, samples))
    else:
        bounds[-1] = (bounds[-1][0], samples)
    return bounds


def windows(
    samples: NDArray[np.float32], sample_rate: int, length_s: float, hop_s: float
) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
    """Cut audio into overlapping windows (views, no copies); see window_bounds for what happens at the end.

    Args:
        samples: Mono audio, shape [T], T at least 1.
        sample_rate: Hz.
        length_s: Seconds of a window.
        hop_s: Seconds between the starts of two windows, at most `length_s`.

    Returns:
        Start of each window in seconds, float64 [W], and the W windows.

    Raises:
        UsageError: If length and hop are not positive, or the hop would skip samples.
    """
    bounds = window_bounds(len(samples), round(length_s * sample_rate), round(hop_s * sample_rate))
    start_s_W = np.array([start for start, _ in bounds], np.float64) / sample_rate
    return start_s_W, [samples[start:stop] for start, stop in bounds]


def stream_windows(
    blocks: Iterable[NDArray[np.float32]], sample_rate: int, length_s: float, hop_s: float
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """What `windows` gives, of audio that arrives in blocks: no more than a window, a hop and a block are held.

    Args:
        blocks: Mono audio, arrays of shape [t], in order.
        sample_rate: Hz.
        length_s: Seconds of a window.
        hop_s: Seconds between the starts of two windows, at most `length_s`.

    Yields:
        Start in seconds and samples of one window after another; none of audio without samples.

    Raises:
        UsageError: If length and hop are not positive, or the hop would skip samples.
    """
    length, hop = round(length_s * sample_rate), round(hop_s * sample_rate)
    window_bounds(length, length, hop)  # raises for what it cannot cut
    held, start = np.empty(0, np.float32), 0
    for block in blocks:
        held = np.concatenate([held, block])
        first = 0
        while len(held) - first >= length + hop:  # the next window is full too, so no tail joins this one
            yield (start + first) / sample_rate, held[first : first + length].copy()
            first += hop
        held, start = held[first:], start + first
    if len(held):
        for first, stop in window_bounds(len(held), length, hop):
            yield (start + first) / sample_rate, held[first:stop]

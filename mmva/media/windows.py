"""Cut long audio into windows that together contain every sample."""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmva.errors import UsageError

# For all music, in training and inference. Close to IMEMNet-C's clips of 2 s, and exactly the length that musicnn was
# trained on, which takes as much time for shorter windows.
WINDOW_S: Final = 3.0
HOP_S: Final = 1.5


def window_bounds(samples: int, length: int, hop: int) -> list[tuple[int, int]]:
    """Start and end (exclusive) of each window, in samples.

    Windows start every `hop` samples and have `length` samples. The rest at the end becomes a window if it has at least
    half of that length, and otherwise joins the last window, so windows have 1/2 to 3/2 of the length. Audio shorter
    than a window is one window. Raises UsageError unless 0 < hop <= length.
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
    """Starts in seconds, float64 [W], and samples (views) of the windows of mono audio [T]; see window_bounds."""
    bounds = window_bounds(len(samples), round(length_s * sample_rate), round(hop_s * sample_rate))
    start_s_W = np.array([start for start, _ in bounds], np.float64) / sample_rate
    return start_s_W, [samples[start:stop] for start, stop in bounds]


def stream_windows(
    blocks: Iterable[NDArray[np.float32]], sample_rate: int, length_s: float, hop_s: float
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield the windows of audio in blocks [t], with their starts in seconds; see `windows`.

    Keeps at most a window, a hop and a block in memory. Audio without samples has no window.
    """
    length, hop = round(length_s * sample_rate), round(hop_s * sample_rate)
    window_bounds(length, length, hop)  # raises for invalid lengths
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

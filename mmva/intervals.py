"""Split-conformal prediction intervals: point +- q, with a coverage that needs no assumption on the errors' shape."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.modalities import AXES


def conformal_intervals(pred_N2: ArrayLike, label_N2: ArrayLike, coverage: float = 0.9) -> dict[str, float]:
    """Half width q per axis such that [prediction - q, prediction + q] holds a new item's label `coverage` of the time.

    q is the ceil((N + 1) * coverage)-th smallest absolute residual, the finite-sample correction of split conformal
    prediction (Lei et al., J. Am. Stat. Assoc. 113, 2018). With too few items for that rank, q is 1: all of the plane.

    Args:
        pred_N2: Predicted VA points of items that training has not seen, [N, 2].
        label_N2: Their labels, [N, 2]. The promise holds for new items exchangeable with these; clips of one song are
            alike, so the effective N is nearer to the number of songs.
        coverage: Wanted share, in (0, 1).

    Raises:
        ValueError: For shapes that differ, values that are not finite, or a coverage outside (0, 1).
    """
    pred, label = np.asarray(pred_N2, np.float64), np.asarray(label_N2, np.float64)
    if pred.shape != label.shape or pred.ndim != 2 or pred.shape[1] != 2:
        raise ValueError(f"predictions and labels must both be [N, 2], got {list(pred.shape)} and {list(label.shape)}")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    residual_N2 = np.abs(pred - label)
    if not np.isfinite(residual_N2).all():
        raise ValueError("predictions or labels hold NaN or infinite values")
    # Rounded first: (9 + 1) * .9 must be rank 9, not 10 for the sake of a last bit.
    rank = math.ceil(round((len(pred) + 1) * coverage, 9))
    if rank > len(pred):
        return dict.fromkeys(AXES, 1.0)
    q_2 = np.sort(residual_N2, axis=0)[rank - 1]
    return {axis: float(q) for axis, q in zip(AXES, q_2, strict=True)}


def interval_bounds(va_N2: ArrayLike, half_width: dict[str, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds [N, 2] of VA points with the half widths of conformal_intervals, cut to [0, 1]."""
    va, q_2 = np.asarray(va_N2, np.float64), np.asarray([half_width[axis] for axis in AXES])
    return np.clip(va - q_2, 0.0, 1.0), np.clip(va + q_2, 0.0, 1.0)

"""Conformal prediction intervals: point +- q, with a coverage that makes no assumption about the errors' shape."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.modalities import AXES

_ROUNDING: Final = 1e-9  # nine tenths of ten items are nine items, despite rounding errors


def conformal_intervals(
    pred_N2: ArrayLike,
    label_N2: ArrayLike,
    coverage: float = 0.9,
    *,
    groups: Sequence[object] | NDArray[np.generic] | None = None,
) -> dict[str, float]:
    """Half width q per axis: [prediction - q, prediction + q] contains a new item's label with probability `coverage`.

    Clips of one song have similar errors, so they are not independent. Hierarchical conformal prediction (Lee, Barber
    and Willett, arXiv 2306.06342; the pooled distribution functions of Dunn, Wasserman and Ramdas, J. Am. Stat. Assoc.
    118, 2023, with a correction for few groups) therefore counts groups: each of K groups has a mass of 1 / (K + 1),
    shared by its items, and the remaining mass is at infinity; q is the smallest absolute residual up to which the mass
    is `coverage`. If every item is its own group, this is split conformal prediction (Lei et al., J. Am. Stat. Assoc.
    113, 2018): the ceil((N + 1) * coverage)-th smallest residual. With too few groups (at .9, fewer than nine), q is 1:
    the whole plane.

    Predictions and labels [N, 2] are of items that were not trained on; `groups` [N] are for instance songs (by default
    each item is its own group). The coverage holds on average for items of new groups from the same distribution; a
    long song counts as much as a short one. Raises ValueError for shapes that differ, values that are not finite, or a
    coverage outside (0, 1).
    """
    pred, label = np.asarray(pred_N2, np.float64), np.asarray(label_N2, np.float64)
    if pred.shape != label.shape or pred.ndim != 2 or pred.shape[1] != 2:
        raise ValueError(f"predictions and labels must both be [N, 2], got {list(pred.shape)} and {list(label.shape)}")
    if groups is not None and len(groups) != len(pred):
        raise ValueError(f"groups must have one entry for each of {len(pred)} items, got {len(groups)}")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    residual_N2 = np.abs(pred - label)
    if not np.isfinite(residual_N2).all():
        raise ValueError("predictions or labels contain NaN or infinite values")
    names_N = np.arange(len(pred)) if groups is None else np.asarray(groups)
    _, group_N, count_K = np.unique(names_N, return_inverse=True, return_counts=True)
    mass_N = 1 / ((len(count_K) + 1) * count_K[group_N])
    return {axis: _quantile(residual_N2[:, i], mass_N, coverage) for i, axis in enumerate(AXES)}


def _quantile(residual_N: NDArray[np.float64], mass_N: NDArray[np.float64], coverage: float) -> float:
    """Smallest residual up to which the mass is `coverage`; 1 if the total mass is less."""
    order = np.argsort(residual_N)
    found = np.searchsorted(np.cumsum(mass_N[order]), coverage - _ROUNDING)
    return float(residual_N[order[found]]) if found < len(order) else 1.0


def interval_bounds(va_N2: ArrayLike, half_width: dict[str, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds [N, 2] of VA points with half widths from conformal_intervals, clipped to [0, 1]."""
    va, q_2 = np.asarray(va_N2, np.float64), np.asarray([half_width[axis] for axis in AXES])
    return np.clip(va - q_2, 0.0, 1.0), np.clip(va + q_2, 0.0, 1.0)

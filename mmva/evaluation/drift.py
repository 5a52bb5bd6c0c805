"""Drift of a catalog's predicted VA points from those of the training split: PSI and Wasserstein-1 per axis.

Both compare predictions with predictions, so a model's bias does not count as drift. The reference is QUANTILES
quantiles per axis in a bundle's provenance, so the training data are not needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.modalities import AXES

QUANTILES: Final = 101
BINS: Final = 10
# Without drift, PSI is about (BINS - 1) * (1 / N + 1 / N_reference) (Yurdakul, Naranjo, J. Risk Model Validation
# 14, 2020): with fewer items on either side, it would often exceed the first limit by chance.
MIN_ITEMS: Final = 400
_SMOOTHING: Final = 0.5
_LIMITS: Final = ((0.1, "stable"), (0.25, "shifted"), (float("inf"), "strongly shifted"))
TOO_FEW: Final = "too few items"


@dataclass(frozen=True)
class Drift:
    """Drift of one axis of a modality; `psi` and `wasserstein` are None for too few items."""

    items: int
    reference_items: int
    psi: float | None  # population stability index, at least 0
    wasserstein: float | None  # Wasserstein-1 distance in units of the axis, in [0, 1]
    verdict: str  # "stable" (PSI below .1), "shifted" (to .25), "strongly shifted" (above), or "too few items"


def reference_quantiles(va_N2: ArrayLike) -> dict[str, list[float]]:
    """The 0, 1, ... 100 % quantiles of each axis of VA points [N, 2]. Raises ValueError if empty or not finite."""
    va = np.asarray(va_N2, np.float64)
    if va.ndim != 2 or va.shape[1] != 2 or not len(va) or not np.isfinite(va).all():
        raise ValueError(f"a reference needs finite VA points of shape [N, 2] with N above 0, got {list(va.shape)}")
    quantiles_Q2 = np.quantile(va, np.linspace(0, 1, QUANTILES), axis=0)
    return {axis: [float(value) for value in quantiles_Q2[:, index]] for index, axis in enumerate(AXES)}


def drift(values_N: ArrayLike, quantiles_Q: ArrayLike, reference_items: int) -> Drift:
    """Compare one axis of a catalog's points with the reference's quantiles (see reference_quantiles)."""
    values = np.asarray(values_N, np.float64)
    if min(len(values), reference_items) < MIN_ITEMS:
        return Drift(len(values), reference_items, None, None, TOO_FEW)
    index = psi(values, quantiles_Q, reference_items)
    verdict = next(word for limit, word in _LIMITS if index <= limit)
    return Drift(len(values), reference_items, index, wasserstein(values, quantiles_Q), verdict)


def drift_by_modality(
    va: Mapping[str, NDArray[np.floating]], reference: Mapping[str, Any]
) -> dict[str, dict[str, Drift]]:
    """Drift per axis of each modality [N, 2] that the reference contains.

    The reference is a bundle's `provenance["reference"]`: {modality: {axis: quantiles}, "items": {modality: N}}.
    """
    return {
        modality: {
            axis: drift(va_N2[:, index], reference[modality][axis], int(reference["items"][modality]))
            for index, axis in enumerate(AXES)
        }
        for modality, va_N2 in va.items()
        if modality in reference and modality in reference.get("items", {})
    }


def psi(values_N: ArrayLike, quantiles_Q: ArrayLike, reference_items: int) -> float:
    """Population stability index: sum of (a - e) * ln(a / e) over bins; a, e: shares of the values and the reference.

    The bins are the reference's BINS quantile ranges (equal quantiles merge). Half an item is added to every bin on
    both sides, so that empty bins do not give infinity. Source, also of the limits: Siddiqi, Credit Risk Scorecards
    (2006). `quantiles_Q` go from 0 to 100 % in equal steps; `values_N` is not empty.
    """
    values, quantiles = np.asarray(values_N, np.float64), np.asarray(quantiles_Q, np.float64)
    wanted_I = np.linspace(0, len(quantiles) - 1, BINS + 1)[1:-1].round().astype(int)
    edges_E = np.unique(quantiles[wanted_I])
    below_E = (np.searchsorted(quantiles, edges_E, side="right") - 1) / (len(quantiles) - 1)
    expected_B = np.diff(below_E, prepend=0.0, append=1.0) * reference_items
    actual_B = np.bincount(np.searchsorted(edges_E, values, side="left"), minlength=len(edges_E) + 1).astype(np.float64)
    actual_B, expected_B = _shares(actual_B), _shares(expected_B)
    return float(np.sum((actual_B - expected_B) * np.log(actual_B / expected_B)))


def wasserstein(values_N: ArrayLike, quantiles_Q: ArrayLike) -> float:
    """Wasserstein-1 distance of values [N] to a reference with items evenly between its quantiles [Q]."""
    from scipy.stats import wasserstein_distance

    quantiles = np.asarray(quantiles_Q, np.float64)
    middles = (quantiles[1:] + quantiles[:-1]) / 2
    return float(wasserstein_distance(np.asarray(values_N, np.float64), middles))


def _shares(counts_B: NDArray[np.float64]) -> NDArray[np.float64]:
    smoothed_B = counts_B + _SMOOTHING
    return np.asarray(smoothed_B / smoothed_B.sum(), np.float64)

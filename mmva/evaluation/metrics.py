"""Metrics of predicted VA points per axis, and of the matching score.

Shapes: N items, column 0 valence, column 1 arousal; all float64.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmva.affect import DEFAULT_SIGMA, matching_score
from mmva.modalities import AXES

VA_METRICS: Final = ("mse", "mae", "r2", "pearson", "ccc")
PAIRED_ROWS: Final = 5_000  # of a modality, for metrics of pairs of items: 25 million pairs
_CHUNK_PAIRS = 1_000_000
# A variance below this share of the mean square is rounding, not spread.
_ROUNDING = 1e-14


def va_metrics(pred_N2: ArrayLike, label_N2: ArrayLike) -> dict[str, dict[str, float]]:
    """MSE, MAE, R2, Pearson's r and Lin's concordance coefficient (CCC) per axis.

    R2 is 1 - SSE / SST (negative if worse than the labels' mean). CCC is 2 cov / (var_p + var_y + (mean_p - mean_y)^2)
    with population moments (Lin, Biometrics 45, 1989). For constant predictions, r and CCC are 0. For constant labels,
    R2, r and CCC are NaN.

    Returns {"valence": {"mse": ..., "mae": ..., "r2": ..., "pearson": ..., "ccc": ...}, "arousal": {...}}. Raises
    ValueError if the shapes are not both [N, 2] with N >= 1, or a value is not finite.
    """
    pred, label = checked_pair(pred_N2, label_N2)
    values = from_moments(item_moments(pred, label).sum(axis=0))
    return {axis: {name: float(values[name][i]) for name in VA_METRICS} for i, axis in enumerate(AXES)}


def checked_pair(pred_N2: ArrayLike, label_N2: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predictions and labels as float64 [N, 2]. Raises ValueError as va_metrics."""
    pred, label = np.asarray(pred_N2, np.float64), np.asarray(label_N2, np.float64)
    if pred.shape != label.shape or pred.ndim != 2 or pred.shape[1] != 2 or len(pred) == 0:
        raise ValueError(
            f"predictions and labels must both be [N, 2], N >= 1; got {list(pred.shape)} and {list(label.shape)}"
        )
    if not (np.isfinite(pred).all() and np.isfinite(label).all()):
        raise ValueError("predictions or labels contain NaN or infinite values")
    return pred, label


def sample_rows(rows: int) -> NDArray[np.int64]:
    """Ascending row numbers of a random sample of at most PAIRED_ROWS rows, the same in every call.

    For metrics of pairs of items (matching, retrieval), whose cost grows with the product of two modalities' rows.
    """
    if rows <= PAIRED_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, PAIRED_ROWS, replace=False))


def item_moments(pred_N2: NDArray[np.float64], label_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each item's terms, [N, 2 axes, 8], of the sums from which from_moments computes every metric.

    Values are relative to the labels' mean: sums of large squares would lose the digits that the variance needs.
    """
    error = pred_N2 - label_N2
    p, y = pred_N2 - label_N2.mean(axis=0), label_N2 - label_N2.mean(axis=0)
    return np.stack([np.ones_like(p), p, y, p * p, y * y, p * y, np.abs(error), error * error], axis=-1)


def from_moments(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Metrics, each of shape [...], from sums of item_moments of shape [..., 8]."""
    count = sums[..., 0]
    mean_p, mean_y, square_p, square_y, product, mae, mse = np.moveaxis(sums[..., 1:] / count[..., None], -1, 0)
    var_p, var_y = _variance(square_p, mean_p), _variance(square_y, mean_y)
    covariance = np.where(var_p > 0, product - mean_p * mean_y, 0.0)
    defined = var_y > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        pearson = np.where(var_p > 0, covariance / np.sqrt(var_p * var_y), 0.0)
        ccc = 2 * covariance / (var_p + var_y + (mean_p - mean_y) ** 2)
        r2 = 1 - mse / var_y
    undefined = {"r2": r2, "pearson": np.clip(pearson, -1.0, 1.0), "ccc": ccc}
    return {"mse": mse, "mae": mae} | {name: np.where(defined, value, np.nan) for name, value in undefined.items()}


def _variance(mean_square: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    variance = mean_square - mean * mean
    return np.where(variance > _ROUNDING * mean_square, variance, 0.0)


def matching_mse(
    pred_a_N2: ArrayLike,
    pred_b_M2: ArrayLike,
    label_a_N2: ArrayLike,
    label_b_M2: ArrayLike,
    *,
    sigma: float = DEFAULT_SIGMA,
    max_pairs: int = 25_000_000,
    seed: int = 0,
) -> float:
    """MSE between predicted and label scores, over all N x M pairs of two modalities.

    Above `max_pairs` pairs, over that many random pairs, drawn with replacement.
    """
    pred_a, label_a = checked_pair(pred_a_N2, label_a_N2)
    pred_b, label_b = checked_pair(pred_b_M2, label_b_M2)
    if len(pred_a) * len(pred_b) > max_pairs:
        rng = np.random.default_rng(seed)
        rows, columns = rng.integers(len(pred_a), size=max_pairs), rng.integers(len(pred_b), size=max_pairs)
        chunks = [slice(start, start + _CHUNK_PAIRS) for start in range(0, max_pairs, _CHUNK_PAIRS)]
        total = sum(
            _squared_error(pred_a[rows[c]], pred_b[columns[c]], label_a[rows[c]], label_b[columns[c]], sigma)
            for c in chunks
        )
        return total / max_pairs
    step = max(1, _CHUNK_PAIRS // len(pred_b))
    total = sum(
        _squared_error(pred_a[start : start + step, None], pred_b, label_a[start : start + step, None], label_b, sigma)
        for start in range(0, len(pred_a), step)
    )
    return total / (len(pred_a) * len(pred_b))


def _squared_error(
    pred_a: NDArray[np.float64],
    pred_b: NDArray[np.float64],
    label_a: NDArray[np.float64],
    label_b: NDArray[np.float64],
    sigma: float,
) -> float:
    error = matching_score(pred_a, pred_b, sigma) - matching_score(label_a, label_b, sigma)
    return float(np.square(error).sum())

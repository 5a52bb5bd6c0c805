"""The plots of a training run, as matplotlib figures without global state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from mmva.modalities import AXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which readers with any colour vision can distinguish.
COLOURS = {"image": "#0072b2", "music": "#d55e00", "caption": "#009e73"}
_DPI = 110
_MAX_POINTS = 4000
_SPAN = (-0.02, 1.02)


def figures(
    history: Sequence[Mapping[str, Any]], predictions: Mapping[str, tuple[ArrayLike, ArrayLike]]
) -> Iterator[tuple[str, Figure]]:
    """Every plot with its name: predictions by modality, and target scores. MLflow itself draws curves of metrics."""
    for modality, (pred_N2, label_N2) in predictions.items():
        yield f"predicted_{modality}", _predicted_against_labelled(modality, pred_N2, label_N2)
    if counts := [row["target_histogram"] for row in history if "target_histogram" in row]:
        yield "target_scores", _score_histogram(np.sum(counts, axis=0).tolist())


def _predicted_against_labelled(modality: str, pred_N2: ArrayLike, label_N2: ArrayLike) -> Figure:
    """Scatter plots of predictions over labels, both in [0, 1], with the diagonal of a perfect model."""
    pred, label = np.asarray(pred_N2, float), np.asarray(label_N2, float)
    step = max(1, -(-len(pred) // _MAX_POINTS))
    figure, axes = _figure(1, 2, width=9.0, height=4.4)
    for column, (panel, axis) in enumerate(zip(axes, AXES, strict=True)):
        panel.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--", zorder=1)
        points = label[::step, column], pred[::step, column]
        panel.scatter(*points, s=12, alpha=0.5, color=COLOURS.get(modality), linewidths=0, zorder=2)
        mse = float(np.mean((pred[:, column] - label[:, column]) ** 2)) if len(pred) else float("nan")
        panel.set(xlim=_SPAN, ylim=_SPAN, aspect="equal", xlabel=f"labelled {axis}", ylabel=f"predicted {axis}")
        panel.set_title(f"{modality}: {axis}, MSE {mse:.4f}, n = {len(pred)}", fontsize=10)
    return figure


def _score_histogram(counts: Sequence[float]) -> Figure:
    """Histogram of the target scores drawn, in equal bins of [0, 1]."""
    figure, (panel,) = _figure(1, 1, width=6.0, height=3.8)
    edges = np.linspace(0, 1, len(counts) + 1)
    panel.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color="#0072b2", edgecolor="white")
    panel.set(xlim=(0, 1), xlabel="score", ylabel="pairs", title="Target matching scores of the pairs drawn")
    return figure


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)

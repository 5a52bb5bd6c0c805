"""The plots of a training run as PNG bytes, drawn with matplotlib's Agg canvas and no global figure state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
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


def predicted_against_labelled(modality: str, pred_N2: ArrayLike, label_N2: ArrayLike) -> bytes:
    """Scatter per axis of predictions over labels, both in [0, 1], with the diagonal of a perfect model."""
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
    return _png(figure)


def training_curves(history: Sequence[Mapping[str, Any]], series: Sequence[str], title: str) -> bytes:
    """Lines of the named numbers of a history over its epochs, with gaps for missing values."""
    figure, (panel,) = _figure(1, 1, width=7.0, height=4.2)
    epochs = [row.get("epoch", index) for index, row in enumerate(history)]
    for name in series:
        values = [float("nan") if row.get(name) is None else float(row[name]) for row in history]
        panel.plot(epochs, values, label=name, linewidth=1.6, marker="o", markersize=2.5)
    panel.set(xlabel="epoch", title=title)
    panel.set_ylim(bottom=0)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.legend(fontsize=8, frameon=False)
    return _png(figure)


def score_histogram(counts: Sequence[float]) -> bytes:
    """Bars of how often each range of the target score (equal parts of [0, 1]) was drawn."""
    figure, (panel,) = _figure(1, 1, width=6.0, height=3.8)
    edges = np.linspace(0, 1, len(counts) + 1)
    panel.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color="#0072b2", edgecolor="white")
    panel.set(xlim=(0, 1), xlabel="score", ylabel="pairs", title="Target matching scores of the pairs drawn")
    return _png(figure)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()

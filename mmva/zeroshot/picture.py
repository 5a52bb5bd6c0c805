"""Draw a summary: the chosen frames, the curve over time, and the curve in the plane."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mmva.errors import UsageError

if TYPE_CHECKING:
    from mmva.zeroshot.video import Moment

# Distinguishable with any colour vision (Okabe & Ito 2008).
_VALENCE, _AROUSAL, _CHOSEN = "#0072B2", "#D55E00", "#F0E442"
_MOST_FRAMES: Final = 8  # in the row; if there are more, those with most change
_CORNERS: Final = (("tense", 0.02, 0.98), ("excited", 0.98, 0.98), ("sad", 0.02, 0.02), ("calm", 0.98, 0.02))


def write_picture(
    out: Path, title: str, time_s_W: NDArray[np.float64], va_W2: NDArray[np.float64], moments: Sequence[Moment]
) -> None:
    """Write a PNG. Raises UsageError if it cannot be written."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(12, 6.2), layout="constrained")
    shown = sorted(sorted(moments, key=lambda one: -one.change)[:_MOST_FRAMES], key=lambda one: one.start_s)
    top, below = figure.subfigures(2, 1, height_ratios=(1, 1.5))
    _draw_frames(top, shown)
    over_time, plane = below.subplots(1, 2, width_ratios=(2.6, 1))
    _draw_time(over_time, time_s_W, va_W2, moments)
    _draw_plane(plane, va_W2, shown)
    figure.suptitle(title.encode("ascii", "replace").decode(), fontsize=11, parse_math=False)
    try:
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from None


def _draw_frames(figure: Any, moments: Sequence[Moment]) -> None:
    from PIL import Image

    for number, (axes, one) in enumerate(zip(figure.subplots(1, len(moments), squeeze=False)[0], moments, strict=True)):
        axes.set_axis_off()
        if one.jpeg:
            axes.imshow(np.asarray(Image.open(io.BytesIO(one.jpeg))))
        axes.set_title(f"{number + 1}  {one.span}\n{one.mood}", fontsize=9)


def _draw_time(axes: Any, time_s_W: NDArray[np.float64], va_W2: NDArray[np.float64], moments: Sequence[Moment]) -> None:
    for one in moments:
        axes.axvspan(one.start_s, one.end_s, color=_CHOSEN, alpha=0.5, linewidth=0)
    axes.plot(time_s_W, va_W2[:, 0], color=_VALENCE, label="valence")
    axes.plot(time_s_W, va_W2[:, 1], color=_AROUSAL, linestyle="--", label="arousal")
    axes.set(ylim=(0, 1), xlabel="seconds; chosen segments shaded", xmargin=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", fontsize=9)


def _draw_plane(axes: Any, va_W2: NDArray[np.float64], moments: Sequence[Moment]) -> None:
    axes.plot(va_W2[:, 0], va_W2[:, 1], color="0.55", linewidth=0.8)
    for number, one in enumerate(moments):
        axes.plot(one.valence, one.arousal, "o", markersize=13, color=_CHOSEN, markeredgecolor="0.2")
        axes.text(one.valence, one.arousal, str(number + 1), ha="center", va="center", fontsize=8)
    for word, x, y in _CORNERS:
        axes.text(x, y, word, ha="left" if x < 0.5 else "right", va="top" if y > 0.5 else "bottom", color="0.4")
    axes.axhline(0.5, color="0.85", linewidth=0.8, zorder=0)
    axes.axvline(0.5, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="valence", ylabel="arousal")

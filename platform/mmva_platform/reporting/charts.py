"""Line charts as coordinates for an SVG: scales, ticks and polylines, which the template draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmva.modalities import MODALITIES

WIDTH: Final = 320.0
HEIGHT: Final = 180.0
_R2_FLOOR: Final = -0.25  # R2 of the first epochs can be far below 0 and would flatten the rest


@dataclass(frozen=True)
class Line:
    """One series; `points` is the attribute of an SVG polyline, `last` the last value."""

    name: str
    style: str
    points: str
    last: float
    end: tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """Position and label of a grid line."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A line chart of WIDTH x HEIGHT units."""

    title: str
    note: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def training_charts(history: Sequence[Mapping[str, Any]]) -> tuple[Chart, ...]:
    """Loss, validation errors and validation R2 by modality over epochs; a chart without a series is left out."""
    numbers = [{key: value for key, value in row.items() if isinstance(value, int | float)} for row in history]
    keys = {key for row in history for key in row}
    series = {key: [float(row.get(key, math.nan)) for row in numbers] for key in keys}
    losses = [("loss", "image", series.get("loss", []))]
    errors = [("VA points", "image", series.get("val_va_mse", []))]
    errors.append(("matching score", "music", series.get("val_matching_mse", [])))
    r2 = [(modality, modality, _mean_r2(series, modality)) for modality in MODALITIES]
    cut_off = f"cut off below {_R2_FLOOR}"
    charts = (
        _chart("Training loss", "", losses, floor=0.0),
        _chart("Validation error (MSE)", "", errors, floor=0.0),
        _chart("Validation R², mean of both axes", cut_off, r2, floor=_R2_FLOOR, ceiling=1.0),
    )
    return tuple(chart for chart in charts if chart is not None)


def _mean_r2(series: Mapping[str, list[float]], modality: str) -> list[float]:
    axes = [values for key, values in series.items() if key.startswith(f"val_r2/{modality}/")]
    return [sum(row) / len(row) for row in zip(*axes, strict=True)]


def _chart(
    title: str, note: str, series: Sequence[tuple[str, str, list[float]]], floor: float, ceiling: float | None = None
) -> Chart | None:
    drawn = [(name, style, values) for name, style, values in series if any(map(math.isfinite, values))]
    if not drawn:
        return None
    finite = [value for _, _, values in drawn for value in values if math.isfinite(value)]
    ticks = _nice_ticks(floor, ceiling if ceiling is not None else max(finite))
    bottom, top = min(floor, ticks[0]), ticks[-1]
    epochs = max(len(values) for _, _, values in drawn)

    def place(index: int, value: float) -> tuple[float, float]:
        share = (max(value, bottom) - bottom) / (top - bottom)
        return round(WIDTH * index / max(1, epochs - 1), 1), round(HEIGHT * (1 - share), 1)

    return Chart(
        title,
        note if min(finite) < floor else "",
        tuple(_line(name, style, values, place) for name, style, values in drawn),
        tuple(Tick(place(index, bottom)[0], str(index + 1)) for index in sorted({0, epochs // 2, epochs - 1})),
        tuple(Tick(place(0, value)[1], f"{value:.3g}") for value in ticks),
    )


def _line(name: str, style: str, values: list[float], place: Any) -> Line:
    known = [(index, value) for index, value in enumerate(values) if math.isfinite(value)]
    points = [place(index, value) for index, value in known]
    return Line(name, style, " ".join(f"{x},{y}" for x, y in points), known[-1][1], points[-1])


def _nice_ticks(low: float, high: float) -> list[float]:
    """About four round numbers from at most `low` or 0 to at least `high`."""
    span = max(high - low, 1e-9)
    magnitude = 10 ** math.floor(math.log10(span / 3))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if span / (factor * magnitude) <= 4.5)
    first, last = math.ceil(round(low / step, 9)), math.ceil(round(high / step, 9))
    return [round(step * index, 12) for index in range(first, max(last, first + 1) + 1)]

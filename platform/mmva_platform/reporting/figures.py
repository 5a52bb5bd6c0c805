"""The evaluation as table rows: every error with its interval, and the floor that it should be below."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmva.modalities import AXES, MODALITIES
from mmva_platform.training.evaluation.card import PUBLISHED_FLOORS

SCALE: Final = 200.0
_OTHERS: Final = ("mae", "r2", "pearson", "ccc")


@dataclass(frozen=True)
class ErrorRow:
    """A modality and axis on the test split; the `_x` are positions on a scale of SCALE units."""

    modality: str
    axis: str
    mse: tuple[float, float, float]  # value, low, high
    floor: float  # MSE of the best constant on the same rows
    published_floor: str  # the same on IMEMNet-C's own labels; "" if not published
    verdict: str  # "better", "unsure" (the interval reaches the floor) or "worse"
    comparison: str  # the verdict in words
    others: tuple[str, ...]  # MAE, R2, Pearson r and CCC, as text
    low_x: float
    value_x: float
    high_x: float
    floor_x: float


@dataclass(frozen=True)
class RetrievalRow:
    """A pair of modalities: text per measure, "value (by chance c)"."""

    query: str
    gallery: str
    cells: tuple[tuple[str, str], ...]


def error_rows(evaluation: Mapping[str, Any]) -> tuple[ErrorRow, ...]:
    """One row per modality and axis with an MSE and a floor."""
    found = []
    for modality in MODALITIES:
        for axis in AXES:
            figures = evaluation.get("metrics", {}).get(modality, {}).get(axis, {})
            mse, floor = _figure(figures.get("mse")), evaluation.get("floors", {}).get(modality, {}).get(axis)
            if math.isfinite(mse[0]) and floor is not None:
                found.append((modality, axis, mse, float(floor), figures))
    longest = max((max(mse[2], mse[0], floor) for _, _, mse, floor, _ in found if floor), default=1.0)
    return tuple(_row(*each, scale=SCALE / (1.05 * longest)) for each in found)


def retrieval_rows(evaluation: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[RetrievalRow, ...]]:
    """The measures' names and one row per pair of modalities."""
    pairs: Mapping[str, Mapping[str, Any]] = evaluation.get("retrieval", {})
    measures = {name for figures in pairs.values() for name in figures if not name.startswith("random_")}
    names = tuple(sorted(measures, key=_measure_order))
    rows = []
    for pair, figures in pairs.items():
        query, _, gallery = pair.partition("->")
        cells = [(text(_figure(figures.get(name))[0], 3), _chance(figures.get(f"random_{name}"))) for name in names]
        rows.append(RetrievalRow(query, gallery, tuple(cells)))
    return names, tuple(rows)


def text(value: float, digits: int = 4) -> str:
    """A number for a table; "n/a" if undefined."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "n/a"


def _row(
    modality: str, axis: str, mse: tuple[float, float, float], floor: float, figures: Mapping[str, Any], *, scale: float
) -> ErrorRow:
    value, low, high = mse
    verdict = "worse" if value >= floor else "better" if high < floor else "unsure"
    change = f"{abs(1 - value / floor):.0%}" if floor > 0 else "?"
    comparison = {"better": f"{change} below", "unsure": f"{change} below, unsure", "worse": f"{change} above"}[verdict]
    known = dict(zip(AXES, PUBLISHED_FLOORS.get(modality, ()), strict=False)).get(axis)
    return ErrorRow(
        modality,
        axis,
        mse,
        floor,
        "" if known is None else text(known),
        verdict,
        comparison,
        tuple(text(_figure(figures.get(name))[0], 3) for name in _OTHERS),
        *(round(scale * x, 1) for x in (low, value, high, floor)),
    )


def _measure_order(name: str) -> tuple[str, int]:
    kind, _, rank = name.partition("@")
    return kind, int(rank) if rank.isdigit() else 0


def _chance(figure: Any) -> str:
    value = _figure(figure)[0]
    return text(value, 3) if math.isfinite(value) else ""


def _figure(figure: Any) -> tuple[float, float, float]:
    """Value, low and high of {"value", "low", "high"}; NaN if missing or null."""
    found = figure if isinstance(figure, Mapping) else {}
    value, low, high = (math.nan if found.get(key) is None else float(found[key]) for key in ("value", "low", "high"))
    return value, (low if math.isfinite(low) else value), (high if math.isfinite(high) else value)

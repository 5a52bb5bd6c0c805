"""Two versions of a model on the same unlabelled media: how far apart their points are.

Shapes: N items of a modality that both could annotate.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmva.affect import quadrant
from mmva.files import write_atomically
from mmva.modalities import AXES, MEDIA_KINDS
from mmva_platform.reporting.html import report_environment
from mmva_platform.reporting.plane import va_of
from mmva_platform.reporting.previews import preview_if_readable

FURTHEST: Final = 12
BINS: Final = 20


@dataclass(frozen=True)
class AxisAgreement:
    """Differences of the two versions on an axis, first - second: mean, quantiles of absolute values, correlation."""

    mean: float
    median: float
    p90: float
    largest: float
    correlation: float | None  # None if either version gives every item the same value
    counts: tuple[int, ...]  # of BINS equal bins from -1 to 1


@dataclass(frozen=True)
class Agreement:
    """One modality: items, distances of the two points, the share in the same mood quadrant, and each axis."""

    items: int
    median_distance: float
    p90_distance: float
    largest_distance: float
    same_quadrant: float
    axes: Mapping[str, AxisAgreement]


@dataclass(frozen=True)
class Apart:
    """An item with its two points (valence, arousal) and moods."""

    id: str
    uri: str | None
    modality: str
    distance: float
    first: tuple[float, float]
    second: tuple[float, float]
    moods: tuple[str, str]


@dataclass(frozen=True)
class Shadow:
    """The points of two versions for a sample of a catalog."""

    first: str  # name and number of the examined version
    second: str  # the version that it is compared with
    catalog: str
    catalog_items: int
    sample: int  # number of items drawn
    seed: int
    agreements: Mapping[str, Agreement]  # by modality
    furthest: tuple[Apart, ...]  # the items whose points are furthest apart, the furthest first
    only_first: tuple[str, ...]  # ids that only the first version could annotate
    only_second: tuple[str, ...]
    neither: int  # number of items that neither could annotate

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def to_text(self) -> str:
        """One line per modality and axis, then the items that differ most."""
        where = f"{self.sample} of {self.catalog_items} items of {self.catalog} (seed {self.seed})"
        lines = [f"{self.first} and {self.second} on {where}"]
        for modality, found in self.agreements.items():
            lines.append(
                f"  {modality}: {found.items} items; distance median {found.median_distance:.3f}, "
                f"90 % {found.p90_distance:.3f}, largest {found.largest_distance:.3f}; "
                f"same quadrant {found.same_quadrant:.0%}"
            )
            for axis, each in found.axes.items():
                r = "undefined" if each.correlation is None else f"{each.correlation:.3f}"
                lines.append(
                    f"    {axis}: {self.first} minus {self.second} {each.mean:+.3f} on average, "
                    f"|difference| median {each.median:.3f}, 90 % {each.p90:.3f}, largest {each.largest:.3f}; r {r}"
                )
        if self.only_first or self.only_second or self.neither:
            lines.append(
                f"  annotated by one only: {len(self.only_first)} by {self.first}, {len(self.only_second)} by "
                f"{self.second}; by neither: {self.neither}"
            )
        lines.append("  furthest apart:")
        lines += [
            f"    {each.distance:.3f}  {each.modality}  {each.id}  "
            f"({each.first[0]:.2f}, {each.first[1]:.2f}) {each.moods[0]} / "
            f"({each.second[0]:.2f}, {each.second[1]:.2f}) {each.moods[1]}"
            for each in self.furthest
        ]
        return "\n".join(lines)


def compared(
    first: pa.Table, second: pa.Table
) -> tuple[dict[str, Agreement], tuple[Apart, ...], tuple[str, ...], tuple[str, ...]]:
    """Compare two annotations (id, uri, modality, valence, arousal, mood) of the same items.

    Returns agreements by modality, the items furthest apart, and the ids that are only in the first or the second.
    """
    row_of = {item: row for row, item in enumerate(second["id"].to_pylist())}
    ids = first["id"].to_pylist()
    both = [(row, row_of[item]) for row, item in enumerate(ids) if item in row_of]
    mine = first.take(pa.array([row for row, _ in both], pa.int64()))
    theirs = second.take(pa.array([row for _, row in both], pa.int64()))
    va_N2, other_N2 = va_of(mine), va_of(theirs)
    modality_N = np.asarray(mine["modality"].to_pylist(), dtype=object)
    agreements: dict[str, Agreement] = {
        kind: _agreement(va_N2[modality_N == kind], other_N2[modality_N == kind])
        for kind in MEDIA_KINDS
        if (modality_N == kind).any()
    }
    known = {ids[row] for row, _ in both}
    return (
        agreements,
        _furthest(mine, theirs, va_N2, other_N2),
        tuple(item for item in ids if item not in known),
        tuple(item for item in row_of if item not in known),
    )


def _agreement(first_N2: NDArray[np.float64], second_N2: NDArray[np.float64]) -> Agreement:
    distance_N = np.linalg.norm(first_N2 - second_N2, axis=1)
    return Agreement(
        items=len(distance_N),
        median_distance=float(np.median(distance_N)),
        p90_distance=float(np.quantile(distance_N, 0.9)),
        largest_distance=float(distance_N.max()),
        same_quadrant=float((quadrant(first_N2) == quadrant(second_N2)).mean()),
        axes={axis: _axis(first_N2[:, i], second_N2[:, i]) for i, axis in enumerate(AXES)},
    )


def _axis(first_N: NDArray[np.float64], second_N: NDArray[np.float64]) -> AxisAgreement:
    difference_N = first_N - second_N
    sizes_N = np.abs(difference_N)
    moves = len(first_N) > 1 and first_N.std() > 0 and second_N.std() > 0
    counts, _ = np.histogram(difference_N, bins=BINS, range=(-1, 1))
    return AxisAgreement(
        mean=float(difference_N.mean()),
        median=float(np.median(sizes_N)),
        p90=float(np.quantile(sizes_N, 0.9)),
        largest=float(sizes_N.max()),
        correlation=float(np.corrcoef(first_N, second_N)[0, 1]) if moves else None,
        counts=tuple(int(count) for count in counts),
    )


def _furthest(
    first: pa.Table, second: pa.Table, first_N2: NDArray[np.float64], second_N2: NDArray[np.float64]
) -> tuple[Apart, ...]:
    distance_N = np.linalg.norm(first_N2 - second_N2, axis=1)
    rows = np.argsort(-distance_N, kind="stable")[:FURTHEST]
    items, others = (table.take(pa.array(rows)).to_pylist() for table in (first, second))
    return tuple(
        Apart(
            *(item["id"], item["uri"], item["modality"], float(distance_N[row])),
            first=(float(first_N2[row, 0]), float(first_N2[row, 1])),
            second=(float(second_N2[row, 0]), float(second_N2[row, 1])),
            moods=(item["mood"], other["mood"]),
        )
        for row, item, other in zip(rows, items, others, strict=True)
    )


def write_shadow_page(path: Path, shadow: Shadow, read: Callable[[str], bytes], captions: Mapping[str, str]) -> None:
    """Write the page in one step. `read` and `captions`: see ReportData."""
    items = [(item, preview_if_readable(item.modality, item.id, item.uri, read, captions)) for item in shadow.furthest]
    page = report_environment().get_template("shadow.html.j2").render(shadow=shadow, items=items, bins=BINS)
    write_atomically(path, page.encode())

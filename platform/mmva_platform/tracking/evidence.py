"""What the gate judges by: two versions, the same rows predicted by both, and what the candidate's bundle holds.

N rows of a modality.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmva.modalities import AXES, Modality
from mmva_platform.tracking.policy import GatePolicy


@dataclass(frozen=True)
class BundleFacts:
    """What the gate reads from a bundle's files.

    Attributes:
        size_bytes: Of all its files.
        card: The model card's Markdown.
        intervals: Half widths of the 90 % intervals by modality and axis.
    """

    size_bytes: int
    card: str
    intervals: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Contender:
    """A registered version as the gate sees it.

    Attributes:
        version: Its number.
        run_id: MLflow's id of the run that made it.
        model_digest: The bundle's digest as registered.
        evaluation: As recorded when it was registered.
        dataset_digest: Of the dataset it was registered with.
        bundle: What its bundle holds, None where that was not looked at.
    """

    version: int
    run_id: str
    model_digest: str
    evaluation: Mapping[str, Any]
    dataset_digest: str = ""
    bundle: BundleFacts | None = None


@dataclass(frozen=True)
class PairedRows:
    """One modality's rows of the split, predicted by both versions.

    Attributes:
        label_N2: Labels.
        candidate_N2: Points that the candidate predicts.
        champion_N2: Points that the champion predicts, None if it does not know the modality.
        group_N: Song or image.
        source_N: Where a row came from.
        trait_N: Loudness of music in dBFS, brightness of images from 0 to 1; None where it was not measured.
        candidate_us: Microseconds an item took the candidate's head.
        champion_us: Likewise the champion's.
    """

    label_N2: NDArray[np.float64]
    candidate_N2: NDArray[np.float64]
    champion_N2: NDArray[np.float64] | None
    group_N: NDArray[np.str_]
    source_N: NDArray[np.str_]
    trait_N: NDArray[np.float64] | None = None
    candidate_us: float = math.nan
    champion_us: float = math.nan

    @property
    def complete(self) -> bool:
        """Whether both versions gave a finite point for every row."""
        points = (self.label_N2, self.candidate_N2, self.champion_N2)
        return len(self.label_N2) > 0 and all(
            each is not None and each.shape == self.label_N2.shape and bool(np.isfinite(each).all()) for each in points
        )

    def where(self, mask_N: NDArray[np.bool_]) -> PairedRows:
        """The rows where the mask is True."""
        return PairedRows(
            self.label_N2[mask_N],
            self.candidate_N2[mask_N],
            None if self.champion_N2 is None else self.champion_N2[mask_N],
            self.group_N[mask_N],
            self.source_N[mask_N],
        )


@dataclass(frozen=True)
class Pairing:
    """The fixed rows of a comparison.

    Attributes:
        dataset_digest: Of the dataset the rows are of.
        split: Such as "test".
        expected: Rows of the split by modality, as the dataset's own description counts them.
        rows: By modality.
    """

    dataset_digest: str
    split: str
    expected: Mapping[str, int]
    rows: Mapping[Modality, PairedRows]


@dataclass(frozen=True)
class Evidence:
    """What a verdict is about; without a champion only the absolute rules can speak.

    Attributes:
        candidate: The version to be judged.
        champion: The version it is held against.
        policy: What is tolerated.
        pairing: The same rows predicted by both.
        trouble: Why there is no pairing, in one line.
    """

    candidate: Contender
    champion: Contender | None
    policy: GatePolicy = field(default_factory=GatePolicy)
    pairing: Pairing | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Finding:
    """One rule applied to one thing: the value found, what was needed, and whether that is so.

    Attributes:
        rule: Its name.
        subject: What it was applied to.
        value: Found; None for what is missing.
        limit: It was held against; "-" says that the value is recorded and held against nothing.
        passed: Whether the rule is content.
        note: In words, what else to know.
        needs: How value and limit have to stand to each other.
        detail: Numbers behind the value, for a page: first, second, low, high, groups of a paired difference.
    """

    rule: str
    subject: str
    value: float | str | None
    limit: float | str | None
    passed: bool
    note: str = ""
    needs: Literal["<", "<=", ">=", "="] = "="
    detail: Mapping[str, float] | None = None

    def __str__(self) -> str:
        """Such as "below-constant image/valence: 0.0310, needs < 0.0240"."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.rule} {self.subject}: {self.shown}, needs {self.needed}{note}"

    @property
    def shown(self) -> str:
        """The value for a table."""
        return as_text(self.value)

    @property
    def needed(self) -> str:
        """Such as "< 0.0240"; "-" where nothing is."""
        return "-" if self.limit == "-" else f"{self.needs} {as_text(self.limit)}"


def mse_of(evaluation: Mapping[str, Any], modality: str, axis: str) -> float | None:
    """Test MSE of a modality's axis as the evaluation recorded it; None if it is missing or not finite."""
    return number(evaluation, "metrics", modality, axis, "mse", "value")


def mean_mse(evaluation: Mapping[str, Any], modality: str) -> float | None:
    """Mean of the axes' test MSE; None if either is missing."""
    per_axis = [mse_of(evaluation, modality, axis) for axis in AXES]
    known = [value for value in per_axis if value is not None]
    return sum(known) / len(AXES) if len(known) == len(AXES) else None


def number(tree: Any, *path: str) -> float | None:
    """A finite number inside nested mappings; None for whatever else is or is not there."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    is_number = isinstance(tree, int | float) and not isinstance(tree, bool) and math.isfinite(tree)
    return float(tree) if is_number else None


def as_text(value: float | str | None) -> str:
    """A value for a table: whole numbers as such, "missing" for what is."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4f}"

"""The gate's policy: the exam and the limits, each with a default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmva.modalities import Modality
from mmva_platform.settings import Config


class PerAxis(Config):
    """A number per axis; null means the default."""

    valence: float | None = Field(None, ge=0, le=1, description="of this modality and axis; null: the default")
    arousal: float | None = Field(None, ge=0, le=1, description="of this modality and axis; null: the default")


class PerModality(Config):
    """Numbers by modality and axis."""

    image: PerAxis = PerAxis()
    music: PerAxis = PerAxis()
    caption: PerAxis = PerAxis()

    def of(self, modality: Modality, axis: str) -> float | None:
        """The number for a modality's axis, or None."""
        value: float | None = getattr(getattr(self, modality), axis)
        return value


class Margins(PerModality):
    """How much larger than the champion's MSE a candidate's may be, at the upper 95 % bound of the difference."""

    default: float = Field(
        0.05, ge=0, lt=1, description="how much larger a candidate's MSE may be, as a share of the champion's"
    )

    def share(self, modality: Modality, axis: str) -> float:
        """The margin of a modality's axis."""
        value = self.of(modality, axis)
        return self.default if value is None else value


class Slices(Config):
    """The same comparison on parts of the rows, on the mean of both axes."""

    apply: bool = Field(default=True, description="false: slices are neither computed nor required")
    by: tuple[Literal["source", "quadrant", "loudness", "brightness"], ...] = Field(
        ("source", "quadrant", "loudness", "brightness"), description="how the rows are divided"
    )
    margin: float = Field(0.15, ge=0, lt=1, description="as margins.default; wider, because a slice has fewer rows")
    smallest_groups: int = Field(20, ge=2, description="a slice with fewer songs or images is not judged")
    too_few_fails: bool = Field(default=False, description="whether a slice with too few groups refuses the candidate")


class Exam(Config):
    """The fixed rows that versions are judged on: a split of a dataset that is not used for training."""

    dataset: str = Field(description="URI of the dataset")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="its digest; other data at the URI are refused")
    split: str = Field("test", description="split of the dataset that is used")
    embeddings: str | None = Field(None, description="where its embeddings are, if not inside the dataset")


class GatePolicy(Config):
    """The gate's exam and limits."""

    exam: Exam | None = Field(
        None, description="null: the champion's exam; for a first champion, the split it was evaluated on"
    )
    text_overlap: float = Field(
        0.02, ge=0, lt=1, description="share of the exam's sentences that may be in the training data word for word"
    )
    margins: Margins = Margins()
    resamples: int = Field(1000, ge=100, le=100_000, description="resamples of the paired bootstrap")
    smallest_groups: int = Field(30, ge=2, description="fewest songs or images for a modality's comparison")
    constant_share: float = Field(1.0, gt=0, le=1, description="MSE must be below this share of the best constant's")
    ceilings: PerModality = Field(PerModality(), description="largest allowed MSE, if given")
    slices: Slices = Slices()
    largest_shortfall: float = Field(
        0.05, ge=0, lt=1, description="by how much fewer than 90 % of the labels may lie inside the 90 % intervals"
    )
    retrieval_margin: float = Field(0.02, ge=0, lt=1, description="how far mean nDCG@10 may be below the champion's")

"""The recipe of a training run: every choice that MMVA's paper leaves open is an option, its default explained.

"Not published" marks what neither the paper nor its files say (docs/method.md); such a default is ours, chosen on
generated data against ridge regression on the same features (`benchmarks/ridge.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mmva.errors import UsageError
from mmva.losses import LossConfig
from mmva.modalities import Modality
from mmva.models.towers import TowerConfig
from mmva_platform.settings import Config, validate

Workers = Annotated[int, Field(ge=1)]


class OptimizerOptions(Config):
    """How weights move. Not published at all."""

    name: Literal["adamw", "sgd"] = Field(
        "adamw", description="not published; Adam, because three towers of different scale train at one lr under it"
    )
    weight_decay: float = Field(0.0, ge=0, description="not published; none, because `ridge` holds the linear paths")
    lr: float = Field(
        3e-4, gt=0, description="peak learning rate; not published; small, because towers start as ridge regressions"
    )
    ridge: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="L2 penalty as a ridge regression's alpha per input dimension; not published. auto: each tower "
        "starts as the ridge regression on its embeddings and keeps the penalty that was best for that on validation. "
        "A number (>= 0) starts all towers at zero under this one penalty",
    )
    betas: tuple[float, float] = Field((0.9, 0.99), description="Adam's moments; sgd takes the first as momentum")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the global gradient norm; null to leave it")

    @field_validator("name", mode="before")
    @classmethod
    def _former_name(cls, name: object) -> object:
        """Recipes of earlier models say "adam", which is AdamW without weight decay."""
        return "adamw" if name == "adam" else name


class ScheduleOptions(Config):
    """How the learning rate moves over the run. Not published."""

    kind: Literal["cosine", "constant"] = Field("cosine", description="not published; cosine to 0 needs no second knob")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of all steps that rise linearly from 0")


class AveragingOptions(Config):
    """Exponential moving average of the weights; validation and the bundle use it. Not published; ours."""

    decay: float = Field(0.98, ge=0, lt=1, description="per step; 0 turns it off. Smooths the noise of small epochs")


class AugmentOptions(Config):
    """What media mode does to a training item. The defaults change nothing that carries valence or arousal."""

    crop: float = Field(0.85, gt=0, le=1, description="smallest share of an image's area in a random crop; 1: none")
    mirror: bool = Field(default=True, description="mirror every other image")
    polarity: bool = Field(default=True, description="invert the polarity of every other clip: no ear hears it")
    brightness: float = Field(0.0, ge=0, lt=1, description="off: brightness carries valence, its label would be wrong")
    saturation: float = Field(0.0, ge=0, lt=1, description="off: saturation carries arousal and valence")
    gain_db: float = Field(0.0, ge=0, le=40, description="off: loudness carries arousal")


class MediaOptions(Config):
    """How media mode tunes backbones. Not published whether MMVA does; every default is ours."""

    layers: dict[Modality, Annotated[int, Field(ge=0)] | Literal["all"]] = Field(
        {"image": 2, "music": 2, "caption": 2},
        description="last blocks of each backbone that train, and what comes after them; 0: frozen",
    )
    lr: dict[Modality, Annotated[float, Field(gt=0)]] = Field(
        {"image": 1e-5, "music": 1e-5, "caption": 1e-5}, description="peak learning rate of each backbone's layers"
    )
    pieces: int = Field(1, ge=1, description="gradient accumulation: a step's share goes through in so many pieces")
    loaders: int | None = Field(
        None, ge=0, description="processes of each worker that decode media; default: its CPUs less one, at least 1"
    )
    compile: bool = Field(default=False, description="torch.compile of the backbones: a slow first step, faster ones")
    recompute: bool = Field(default=False, description="gradient checkpointing: a third more computing for less memory")
    bf16: bool = Field(default=True, description="bfloat16 autocast of backbones on GPUs; a CPU computes in float32")
    augment: AugmentOptions = AugmentOptions()
    out: str | None = Field(
        None, description="folder or URI for the tuned layers, which bundles refer to; default: in the run's directory"
    )
    probe_items: int = Field(20_000, ge=100, description="about how many stored embeddings the towers start from")


class CheckpointOptions(Config):
    """What stays in the run's storage."""

    keep: int = Field(2, ge=1, description="newest checkpoints kept: one to go on from, one in case that is damaged")
    metric: Literal["val_total", "val_va_mse", "val_matching_mse"] = Field(
        "val_total", description="smallest wins: mean VA MSE over modalities, matching-score MSE, or their sum"
    )
    every_s: float = Field(
        30.0, ge=0, description="save after so many seconds, also within an epoch; 0: as soon as one is written"
    )


class Recipe(Config):
    """One training run, completely: with the dataset's digest and the code's version it gives the same model again."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        description="run name; default: time and preset. Used once",
    )
    dataset: str = Field(min_length=1, description="URI of an imported dataset with embeddings of the preset beside it")
    embeddings: str | None = Field(None, description="where `mmva embed --out` put them, if not beside the dataset")
    preset: str = Field("compact", description="backbones: paper, compact or tiny")
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, dropout and the order of pairs")
    epochs: int = Field(40, ge=1, description="not published; an epoch pairs every item of the smaller side once")
    batch_size: int = Field(64, ge=1, description="pairs a step over all workers: their number changes nothing")
    workers: Workers | tuple[Workers, Workers] | Literal["auto"] = Field(
        "auto",
        description="Ray Train workers; the result is the same for any number, but for dropout's random draws. auto: "
        "one for each GPU, or one without GPUs. [min, max]: as many as the cluster has room for, fewer when a node is "
        "lost, more when one comes",
    )
    cpus_per_worker: float = Field(0.5, gt=0, description="logical CPUs; below 1 leaves Ray room on a small machine")
    strategy: Literal["random", "matched"] = Field(
        "random", description="partner of an image: any clip (as published), or stratified to even out target scores"
    )
    mode: Literal["features", "media"] = Field(
        "features",
        description="not published which backbones MMVA tunes. features: none, an epoch takes seconds, because "
        "embeddings are computed once. media: their last layers, from the media themselves",
    )
    refit_folds: int = Field(
        0,
        ge=0,
        description="0: validation rows are never trained on. K: for collections of up to some ten thousand rows, when "
        "the best epoch is known the towers are trained anew for as long on training and validation rows together; K "
        "folds by group of these rows choose the penalty, and calibrate the intervals. Costs K + 1 trainings more, in "
        "the driver's process",
    )
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    model: TowerConfig = TowerConfig()
    loss: LossConfig = Field(LossConfig(), description="its sigma is the run's: targets, loss and model share one")
    media: MediaOptions = MediaOptions()
    averaging: AveragingOptions = AveragingOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers; one of `auto` without GPUs."""
        if isinstance(self.workers, tuple):
            return self.workers
        return (1, 1) if self.workers == "auto" else (self.workers, self.workers)

    @model_validator(mode="after")
    def _options_fit(self) -> Recipe:
        fewest, most = self.worker_range
        if fewest > most:
            raise ValueError(f"workers [{fewest}, {most}]: the first must be the smaller one")
        if self.batch_size < most:
            raise ValueError(f"batch_size {self.batch_size} leaves some of the {most} workers without a pair")
        if self.loss.similarity_over == "all" and self.media.pieces > 1:
            raise ValueError("media.pieces: with loss.similarity_over=all the whole share has to be one piece")
        if self.loss.similarity_by == "projections" and self.model.hidden == 0:
            raise ValueError("loss.similarity_by: model.hidden=0 leaves no projections to compare")
        if self.refit_folds == 1:
            raise ValueError("refit_folds: 1 is too few; give at least 2, or 0 for none")
        if self.refit_folds and self.mode == "media":
            raise ValueError("refit_folds: media mode has no refit; use mode=features, or refit_folds=0")
        if self.model.head == "mlp" and self.optimizer.ridge != 0:
            raise ValueError("model.head: mlp has no linear path that a ridge could hold; set optimizer.ridge=0")
        return self


def fresh_name(preset: str, now: datetime | None = None) -> str:
    """A run name from time and preset, such as 20250314-150926-compact; sorts by age."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{preset}"


def recipe_of(provenance: Mapping[str, Any]) -> Recipe:
    """The recipe in a bundle's provenance, to train it again on other splits.

    UsageError if there is none, or it tunes backbones: other splits would need embeddings of their own.
    """
    values: dict[str, Any] = provenance.get("recipe") or {}
    if not values:
        raise UsageError("the model does not say by which recipe it was trained")
    if values.get("mode", "features") != "features":
        raise UsageError("the model's backbones were tuned on its own split, so its recipe fits no other")
    known = {name: value for name, value in values.items() if name in Recipe.model_fields}
    return validate(Recipe, known, "the model's recipe")

"""The recipe of a training run: every choice that MMVA's paper leaves open is an option with an explained default.

"Not published" marks a choice that neither the paper nor its files state (docs/method.md). We chose such a default on
generated data, against ridge regression on the same features (`benchmarks/ridge.py`).
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
    """The optimizer. The paper publishes none of it."""

    name: Literal["adamw", "sgd"] = Field(
        "adamw", description="not published; Adam, because it trains three towers of different scale at one lr"
    )
    weight_decay: float = Field(0.0, ge=0, description="not published; 0, because `ridge` penalises the linear paths")
    lr: float = Field(
        3e-4, gt=0, description="peak learning rate; not published; small, because towers start as ridge regressions"
    )
    ridge: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="L2 penalty, as a ridge regression's alpha per input dimension; not published. auto: each tower "
        "starts as the ridge regression on its embeddings and keeps the penalty that was best on validation. "
        "A number (>= 0): all towers start at zero with this penalty",
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.99), description="decay of Adam's moments; sgd uses the first as momentum"
    )
    max_grad_norm: float | None = Field(1.0, gt=0, description="limit of the global gradient norm; null: no limit")

    @field_validator("name", mode="before")
    @classmethod
    def _former_name(cls, name: object) -> object:
        """Recipes of earlier models have "adam", which is AdamW without weight decay."""
        return "adamw" if name == "adam" else name


class ScheduleOptions(Config):
    """The learning rate over the run. Not published."""

    kind: Literal["cosine", "constant"] = Field("cosine", description="not published; cosine ends at 0")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of all steps in which lr rises from 0")


class AveragingOptions(Config):
    """Exponential moving average of the weights, used by validation and the bundle. Not published."""

    decay: float = Field(0.98, ge=0, lt=1, description="per step; 0 turns it off. Smooths the noise of small epochs")


class AugmentOptions(Config):
    """Augmentation in media mode. The defaults change nothing that carries valence or arousal."""

    crop: float = Field(0.85, gt=0, le=1, description="smallest share of an image's area in a random crop; 1: no crop")
    mirror: bool = Field(default=True, description="mirror every other image")
    polarity: bool = Field(default=True, description="invert the polarity of every other clip, which is inaudible")
    brightness: float = Field(0.0, ge=0, lt=1, description="off: brightness carries valence; its label would be wrong")
    saturation: float = Field(0.0, ge=0, lt=1, description="off: saturation carries arousal and valence")
    gain_db: float = Field(0.0, ge=0, le=40, description="off: loudness carries arousal")


class MediaOptions(Config):
    """How media mode tunes backbones. The paper does not say whether MMVA does; all defaults are ours."""

    layers: dict[Modality, Annotated[int, Field(ge=0)] | Literal["all"]] = Field(
        {"image": 2, "music": 2, "caption": 2},
        description="number of last blocks of each backbone that train, with the layers after them; 0: frozen",
    )
    lr: dict[Modality, Annotated[float, Field(gt=0)]] = Field(
        {"image": 1e-5, "music": 1e-5, "caption": 1e-5}, description="peak learning rate of each backbone's layers"
    )
    pieces: int = Field(1, ge=1, description="gradient accumulation: number of pieces of each worker's share of a step")
    loaders: int | None = Field(
        None, ge=0, description="decoding processes of each worker; default: its CPUs minus one, at least 1"
    )
    compile: bool = Field(default=False, description="torch.compile of the backbones: faster after a slow first step")
    recompute: bool = Field(default=False, description="gradient checkpointing: less memory, a third more computing")
    bf16: bool = Field(default=True, description="bfloat16 autocast of backbones on GPUs; CPUs compute in float32")
    augment: AugmentOptions = AugmentOptions()
    out: str | None = Field(
        None, description="folder or URI for the tuned layers, to which bundles refer; default: in the run's directory"
    )
    probe_items: int = Field(20_000, ge=100, description="about how many stored embeddings the probes are fitted on")


class CheckpointOptions(Config):
    """Which checkpoints are written and kept."""

    keep: int = Field(2, ge=1, description="newest checkpoints kept: one to resume from, one in case that is damaged")
    metric: Literal["val_total", "val_va_mse", "val_matching_mse"] = Field(
        "val_total",
        description="smallest is best: mean VA MSE over modalities, matching-score MSE, or their sum",
    )
    every_s: float = Field(
        30.0,
        ge=0,
        description="seconds between checkpoints, also within an epoch; 0: as often as they can be written",
    )


class Recipe(Config):
    """All options of a training run: with the same dataset digest and code version, it gives the same model."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        description="run name; each name is used once; default: time and preset",
    )
    dataset: str = Field(min_length=1, description="URI of an imported dataset that was embedded with the preset")
    embeddings: str | None = Field(None, description="the `--out` of `mmva embed`, if it was given")
    preset: str = Field("compact", description="backbones: paper, compact or tiny")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, dropout and the order of pairs")
    epochs: int = Field(40, ge=1, description="not published; an epoch pairs every item of the smaller side once")
    batch_size: int = Field(64, ge=1, description="pairs per step over all workers, whatever their number")
    workers: Workers | tuple[Workers, Workers] | Literal["auto"] = Field(
        "auto",
        description="Ray Train workers; the result is the same for any number, except for dropout's random draws. "
        "auto: one per GPU, or one without GPUs. [min, max]: as many as the cluster has room for, fewer after a node "
        "is lost, more after one is added",
    )
    cpus_per_worker: float = Field(0.5, gt=0, description="logical CPUs; below 1 leaves Ray room on a small machine")
    strategy: Literal["random", "matched"] = Field(
        "random",
        description="partner of an image: any clip (as published), or drawn for evenly spread target scores",
    )
    mode: Literal["features", "media"] = Field(
        "features",
        description="not published which backbones MMVA tunes. features: none; an epoch takes seconds, as embeddings "
        "are computed once. media: their last layers, from the media",
    )
    refit_folds: int = Field(
        0,
        ge=0,
        description="0: validation rows are never trained on. K, for up to some ten thousand rows: when the best epoch "
        "is known, new towers are trained for as many epochs on training and validation rows together; K folds by "
        "group of these rows choose the penalty and calibrate the intervals. Costs K + 1 more trainings in the "
        "driver's process",
    )
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    model: TowerConfig = TowerConfig()
    loss: LossConfig = Field(LossConfig(), description="its sigma is the run's: targets, loss and model use the same")
    media: MediaOptions = MediaOptions()
    averaging: AveragingOptions = AveragingOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers; for `auto`, as without GPUs."""
        if isinstance(self.workers, tuple):
            return self.workers
        return (1, 1) if self.workers == "auto" else (self.workers, self.workers)

    @model_validator(mode="after")
    def _options_fit(self) -> Recipe:
        fewest, most = self.worker_range
        if fewest > most:
            raise ValueError(f"workers [{fewest}, {most}]: the first number must not be larger than the second")
        if self.batch_size < most:
            raise ValueError(f"batch_size {self.batch_size} leaves some of the {most} workers without a pair")
        if self.loss.similarity_over == "all" and self.media.pieces > 1:
            raise ValueError("media.pieces: must be 1 with loss.similarity_over=all")
        if self.loss.similarity_by == "projections" and self.model.hidden == 0:
            raise ValueError("loss.similarity_by: projections need model.hidden > 0")
        if self.refit_folds == 1:
            raise ValueError("refit_folds: must be 0 or at least 2")
        if self.refit_folds and self.mode == "media":
            raise ValueError("refit_folds: media mode has no refit; use mode=features, or refit_folds=0")
        if self.model.head == "mlp" and self.optimizer.ridge != 0:
            raise ValueError("model.head: mlp has no linear path to penalise; set optimizer.ridge=0")
        return self


def fresh_name(preset: str, now: datetime | None = None) -> str:
    """A run name from time and preset, such as 20250314-150926-compact; sorts by age."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{preset}"


def recipe_of(provenance: Mapping[str, Any]) -> Recipe:
    """The recipe in a bundle's provenance, to train it again on other splits.

    Raises UsageError if there is none, or if it tunes backbones: other splits would need embeddings of their own.
    """
    values: dict[str, Any] = provenance.get("recipe") or {}
    if not values:
        raise UsageError("the model does not record its recipe")
    if values.get("mode", "features") != "features":
        raise UsageError("the model's backbones were tuned on its own split, so its recipe cannot be used on another")
    known = {name: value for name, value in values.items() if name in Recipe.model_fields}
    return validate(Recipe, known, "the model's recipe")

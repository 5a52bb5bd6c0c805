"""The model's options. Imports no torch, because workers without torch read bundles."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mmva.affect import DEFAULT_SIGMA
from mmva.config import MethodConfig


class TowerConfig(MethodConfig):
    """Size and regularisation of a head; none of these is published for MMVA."""

    head: Literal["residual", "mlp"] = Field(
        "residual",
        description="not published. residual: a linear path plus an MLP that starts at zero, so that a tower starts as "
        "a ridge regression. mlp: a plain MLP with one hidden layer and torch's initialization, as in most papers",
    )
    activation: Literal["gelu", "relu", "tanh"] = Field("gelu", description="of the hidden layer; not published")
    hidden: int = Field(
        256,
        ge=0,
        le=8192,
        description="width of the non-linear path; 0 means only the linear path. Not published. 256 is more than two "
        "outputs need and trains in seconds on a CPU",
    )
    clip: float = Field(
        4.0,
        gt=0,
        description="standardised embeddings are clipped to +-clip. Not published. Activations have heavy tails, and "
        "outliers of a few items would dominate a linear path",
    )
    input_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="dropout on the standardised embedding. Not published. 0, because dropout is a ridge penalty of "
        "n * p / (1 - p) on the linear path (Wager et al. 2013), and the recipe has that penalty without randomness, "
        "so the result does not depend on the number of workers",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the hidden layer. Not published. 0, for the same reason"
    )

    @model_validator(mode="after")
    def _mlp_has_a_layer(self) -> TowerConfig:
        if self.head == "mlp" and self.hidden == 0:
            raise ValueError("hidden: head: mlp needs a width above 0; or use head: residual")
        return self


class ModelConfig(TowerConfig):
    """Options of all towers, and the scale of the model's scores."""

    sigma: float = Field(
        DEFAULT_SIGMA,
        gt=0,
        description="scale of the model's scores. MMVA's is not published; IMEMNet's, as in the loss",
    )

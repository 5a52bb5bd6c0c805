"""The model's options, readable without torch: a worker that needs no torch reads a bundle, too."""

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
        "a ridge regression. mlp: a plain MLP of one hidden layer with torch's own initialization, as most papers have",
    )
    activation: Literal["gelu", "relu", "tanh"] = Field("gelu", description="of the hidden layer; not published")
    hidden: int = Field(
        256,
        ge=0,
        le=8192,
        description="width of the non-linear path; 0 leaves the linear path alone. Not published. 256 is more than two "
        "outputs need and trains in seconds on a CPU",
    )
    clip: float = Field(
        4.0,
        gt=0,
        description="standardised embeddings are cut to +-clip. Not published. Activations have heavy tails, and a few "
        "items' outliers otherwise steer a linear path",
    )
    input_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="dropout on the standardised embedding. Not published. None, because it is a ridge penalty of "
        "n * p / (1 - p) on the linear path (Wager et al. 2013), and the recipe has that penalty without random draws: "
        "so any number of workers computes the same",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the hidden layer. Not published. None, for the same reason"
    )

    @model_validator(mode="after")
    def _mlp_has_a_layer(self) -> TowerConfig:
        if self.head == "mlp" and self.hidden == 0:
            raise ValueError("hidden: 0 leaves nothing of head: mlp; give it a width, or use head: residual")
        return self


class ModelConfig(TowerConfig):
    """The towers' options, the same for each modality, and the scale of the scores that the model gives."""

    sigma: float = Field(
        DEFAULT_SIGMA,
        gt=0,
        description="scale of the scores that the model gives. MMVA's is not published; IMEMNet's, as in the loss",
    )

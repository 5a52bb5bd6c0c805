"""What decides the result of inference, besides the model: how media are cut, and which engine computes."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from mmva.config import MethodConfig


class Preprocessing(MethodConfig):
    """What happens to an item before the towers see it."""

    fingerprints: dict[str, str] = Field(description="modality -> fingerprint of backbone and its preprocessing")
    window_s: float = Field(gt=0, description="length of a window of audio")
    hop_s: float = Field(gt=0, description="distance of the starts of neighbouring windows")
    short_side: int = Field(gt=0, description="pixels below which no JPEG is decoded; the same as when training")


ON_GPU: Final = ("cuda", "cuda-bf16")


class EngineInfo(MethodConfig):
    """What computes a modality's embeddings, and how it was chosen."""

    name: Literal["torch", "torch-bf16", "onnx", "cuda", "cuda-bf16"]
    file: str | None = Field(None, description="the exported network, relative to the run; onnx only")
    sha256: str | None = Field(None, description="of the file")
    max_va_difference: float | None = Field(
        0.0, description="largest difference to fp32 torch on the calibration batch; none if it was not compared"
    )
    min_cosine: float | None = Field(1.0, description="of its embeddings with those of fp32 torch, there")
    items_per_s: dict[str, float] = Field({}, description="engine -> calibrated speed of one core, for --plan")

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.name in ON_GPU

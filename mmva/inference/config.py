"""Settings that affect the result of inference, besides the model: the cutting of media, and the engine."""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from pydantic import Field

from mmva.config import MethodConfig
from mmva.errors import UsageError
from mmva.media.images.decode import SHORT_SIDE
from mmva.media.limits import DECODERS
from mmva.media.windows import HOP_S, WINDOW_S

EngineName = Literal["torch", "torch-bf16", "onnx", "cuda", "cuda-bf16"]
ENGINE_CHOICES: Final = ("auto", *get_args(EngineName))
ON_GPU: Final = ("cuda", "cuda-bf16")


class Preprocessing(MethodConfig):
    """Processing of an item before the towers."""

    fingerprints: dict[str, str] = Field(description="modality -> fingerprint of backbone and its preprocessing")
    window_s: float = Field(gt=0, description="length of a window of audio")
    hop_s: float = Field(gt=0, description="time between the starts of neighbouring windows")
    short_side: int = Field(gt=0, description="smallest short side to which JPEGs are decoded; as in training")
    decoders: int = Field(1, description="decoder version; versions differ in pixels or samples of some files")


def default_preprocessing(
    backbones: Mapping[str, Mapping[str, Any]], window_s: float = WINDOW_S, hop_s: float = HOP_S
) -> Preprocessing:
    """Preprocessing for a bundle's backbones ({modality: {"fingerprint": ...}}), with the default windows."""
    fingerprints = {modality: str(record["fingerprint"]) for modality, record in backbones.items()}
    return Preprocessing(
        fingerprints=fingerprints, window_s=window_s, hop_s=hop_s, short_side=SHORT_SIDE, decoders=DECODERS
    )


class EngineInfo(MethodConfig):
    """The engine for a modality's embeddings, and the measurements that it was chosen by."""

    name: EngineName
    file: str | None = Field(None, description="the exported network, relative to the run; onnx only")
    sha256: str | None = Field(None, description="of the file")
    max_va_difference: float | None = Field(
        0.0, description="largest difference from fp32 torch on the calibration batch; null if not measured"
    )
    min_cosine: float | None = Field(1.0, description="of its embeddings and those of fp32 torch, on that batch")
    items_per_s: dict[str, float] = Field({}, description="engine -> calibrated speed of one core, for --plan")

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.name in ON_GPU


def check_engine_name(name: str) -> str:
    """The name of an engine, or "auto". Raises UsageError if there is no such engine."""
    if name not in ENGINE_CHOICES:
        raise UsageError(f"engine {name!r} is unknown; choose one of {', '.join(ENGINE_CHOICES)}")
    return name

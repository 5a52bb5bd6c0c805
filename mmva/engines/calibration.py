"""Measure the speed of each engine for a modality on this machine, and its difference from fp32 torch.

A measurement is valid for one kind of processor and set of versions; these are its key in the cache. It uses synthetic
items, because a catalog's media may kill the process that decodes them.
"""

from __future__ import annotations

import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from mmva.config import MethodConfig
from mmva.errors import OperationFailed
from mmva.files import sha256_hex, write_atomically

if TYPE_CHECKING:
    from mmva.models.predictor import ItemEncoder, Predictor

logger = logging.getLogger(__name__)

MAX_VA_DIFFERENCE: Final = 1e-3
MIN_COSINE: Final = 0.9999
BATCH: Final = 16
_REPEATS: Final = 3
_VERSIONS: Final = ("torch", "transformers", "onnx", "onnxruntime", "numpy")


class Measured(MethodConfig):
    """One engine on the calibration batch."""

    items_per_s: float
    max_va_difference: float = Field(ge=0, allow_inf_nan=True)
    min_cosine: float

    @property
    def faithful(self) -> bool:
        """Whether the results are close enough to those of fp32 torch."""
        return self.max_va_difference <= MAX_VA_DIFFERENCE and self.min_cosine >= MIN_COSINE


class Calibration(MethodConfig):
    """All engines available for a modality on a machine."""

    engines: dict[str, Measured]
    onnx_sha256: str | None = None


def calibrate(model: Predictor, modality: str, cache: CalibrationCache) -> tuple[Calibration, bytes | None]:
    """Measure the CPU engines of a modality on this machine, or read the measurement from the cache.

    Also returns the network exported for the engine "onnx" (None if this encoder cannot be exported).
    """
    known = cache.read()
    if known is not None:
        network = cache.read_network(known.onnx_sha256) if known.onnx_sha256 else None
        if known.onnx_sha256 is None or network is not None:
            return known, network
    from mmva.engines.bf16 import Bf16Encoder, has_bf16

    encoder: Any = model.encoder(modality)
    batch = made_up_items(modality, encoder.sample_rate)
    encoders: dict[str, ItemEncoder] = {"torch": encoder}
    if has_bf16():
        encoders["torch-bf16"] = Bf16Encoder(encoder)
    network = _exported(encoder, batch, cache)
    if network is not None:
        from mmva.engines.onnx_encoder import OnnxEncoder

        encoders["onnx"] = OnnxEncoder(network, lambda: encoder)
    with _one_thread():
        measured = measure(encoders, batch, lambda emb_ND: model.predict_embeddings(modality, emb_ND))
    calibration = Calibration(engines=measured, onnx_sha256=sha256_hex(network) if network is not None else None)
    cache.write(calibration)
    return calibration, network


def measure(
    encoders: Mapping[str, ItemEncoder],
    items: Sequence[Any],
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    timer: Callable[[], float] = time.process_time,
) -> dict[str, Measured]:
    """Compare engines (name -> encoder, one thread each) on a batch; "torch" is the reference.

    `items` are decoded, and repeated to a full batch. `predict` is the tower: embeddings [N, D] to VA points [N, 2].
    `timer` returns CPU seconds by default, so that a busy machine does not change the choice.
    """
    batch = [items[index % len(items)] for index in range(BATCH)]
    emb = {name: encoder.encode(batch, batch_size=BATCH) for name, encoder in encoders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(_REPEATS):
        for name, encoder in encoders.items():
            begun = timer()
            encoder.encode(batch, batch_size=BATCH)
            seconds[name].append(timer() - begun)
    reference = emb["torch"]
    va_N2 = predict(reference)
    return {
        name: Measured(
            items_per_s=BATCH / max(statistics.median(seconds[name]), 1e-9),
            max_va_difference=_or_worst(np.abs(predict(found) - va_N2).max(), np.inf),
            min_cosine=_or_worst(_cosines(reference, found).min(), -1.0),
        )
        for name, found in emb.items()
    }


def fastest(measured: Mapping[str, Measured]) -> str:
    """The fastest faithful engine; torch always counts as faithful."""
    faithful = [name for name, figures in measured.items() if figures.faithful or name == "torch"]
    return max(faithful, key=lambda name: measured[name].items_per_s)


class CalibrationCache:
    """Measurements and exported networks in a folder of this machine."""

    def __init__(self, folder: Path, fingerprint: str, model_digest: str, modality: str) -> None:
        """Open the cache for one modality of a model; the key also has the processor and the versions."""
        versions = [f"{name} {version(name)}" for name in _VERSIONS]
        self.network = folder / f"{fingerprint[:16]}-{sha256_hex(json.dumps(versions).encode())[:16]}.onnx"
        key = json.dumps([fingerprint, model_digest, modality, versions, _processor()])
        self._file = folder / f"{sha256_hex(key.encode())[:32]}.json"

    def read(self) -> Calibration | None:
        """The stored measurement; None if missing or unreadable."""
        try:
            return Calibration.model_validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, calibration: Calibration) -> None:
        """Store a measurement."""
        write_atomically(self._file, calibration.model_dump_json(indent=1).encode())

    def read_network(self, sha256: str | None = None) -> bytes | None:
        """The exported network; None if missing, damaged, or different from the digest `sha256`."""
        try:
            data = self.network.read_bytes()
            stored = self.network.with_suffix(".sha256").read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return data if sha256_hex(data) == stored and sha256 in {None, stored} else None

    def write_network(self, data: bytes) -> None:
        """Store an exported network and its digest."""
        write_atomically(self.network, data)
        write_atomically(self.network.with_suffix(".sha256"), sha256_hex(data).encode())


def made_up_items(modality: str, sample_rate: int | None) -> list[Any]:
    """Synthetic decoded items, the same in every call. Raises ValueError for music without a sample rate."""
    rng = np.random.default_rng(0)
    if modality == "image":
        from PIL import Image

        pixels = rng.integers(0, 256, (8, 12, 16, 3), np.uint8)
        return [Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC) for small in pixels]
    if modality == "music":
        if sample_rate is None:
            raise ValueError("music needs a sample rate")
        seconds_T = np.arange(3 * sample_rate) / sample_rate
        tones = [0.3 * np.sin(2 * np.pi * pitch * seconds_T) for pitch in (110, 220, 440, 880)]
        return [(tone + rng.normal(0, 0.05, len(tone))).astype(np.float32) for tone in tones]
    return ["a slow sad piano", "aggressive fast metal drums with a screaming guitar, recorded live", "calm strings"]


def _exported(encoder: Any, items: Sequence[Any], cache: CalibrationCache) -> bytes | None:
    """The encoder's network as ONNX, from the cache or now; None if it cannot be exported."""
    data = cache.read_network()
    if data is not None:
        return data
    from mmva.engines.export import export_onnx

    try:
        data = export_onnx(encoder, (list(items) * 2)[:2])
    except OperationFailed as error:
        logger.info("%s", error)
        return None
    cache.write_network(data)
    return data


def _processor() -> str:
    """Model and instruction sets of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags")
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    return "|".join(value.strip() for name, value in sorted(found.items()) if name.strip() in wanted)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cosines(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = a_ND.astype(np.float64), b_ND.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-12)


def _or_worst(value: Any, worst: float) -> float:
    """The value, or the worst one if it is not finite."""
    return float(value) if np.isfinite(value) else worst

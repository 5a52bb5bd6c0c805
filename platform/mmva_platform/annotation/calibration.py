"""How fast each engine computes a modality here, and how far its results are from fp32 torch.

Only what was measured on this kind of processor with these versions counts, so that is what a measurement is kept
under. It holds for every catalog: the sample of the first call stands for the later ones.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from mmva_platform.annotation.schema import sha256_hex
from mmva_platform.settings import Config

MAX_VA_DIFFERENCE: Final = 1e-3
MIN_COSINE: Final = 0.9999
BATCH: Final = 16
_REPEATS: Final = 3
_VERSIONS: Final = ("torch", "transformers", "onnx", "onnxruntime", "numpy")


class Encodes(Protocol):
    """An encoder under any engine."""

    def encode(self, items: Sequence[Any], batch_size: int = 16) -> NDArray[np.float32]:
        """Embeddings [N, D]."""


class Measured(Config):
    """One engine on the calibration batch."""

    items_per_s: float
    max_va_difference: float = Field(ge=0, allow_inf_nan=True)
    min_cosine: float

    @property
    def faithful(self) -> bool:
        """Whether results are near enough to fp32 torch to stand for it."""
        return self.max_va_difference <= MAX_VA_DIFFERENCE and self.min_cosine >= MIN_COSINE


class Calibration(Config):
    """All engines of a modality that exist here."""

    engines: dict[str, Measured]
    onnx_sha256: str | None = None


def measure(
    encoders: Mapping[str, Encodes],
    items: Sequence[Any],
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    timer: Callable[[], float] = time.process_time,
) -> dict[str, Measured]:
    """Compare engines on a batch; "torch" among them is the reference.

    Args:
        encoders: Engine -> encoder; one thread each.
        items: At least one decoded item; repeated to a full batch.
        predict: The tower: embeddings [N, D] to VA points [N, 2].
        timer: Seconds; of the processor by default, so that a busy machine does not decide.
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
    """The fastest engine among the faithful; torch is always one."""
    faithful = [name for name, figures in measured.items() if figures.faithful or name == "torch"]
    return max(faithful, key=lambda name: measured[name].items_per_s)


class CalibrationCache:
    """Measurements and exported networks under <home>/cache/engines."""

    def __init__(self, home: Path, fingerprint: str, model_digest: str, modality: str) -> None:
        """One modality of one model: VA differences depend on its tower, speeds on processor and versions."""
        versions = [f"{name} {version(name)}" for name in _VERSIONS]
        folder = home / "cache" / "engines"
        self.network = folder / f"{fingerprint[:16]}-{sha256_hex(json.dumps(versions).encode())[:16]}.onnx"
        key = json.dumps([fingerprint, model_digest, modality, versions, processor()])
        self._file = folder / f"{sha256_hex(key.encode())[:32]}.json"

    def read(self) -> Calibration | None:
        """What was measured before; None if nothing was, or it cannot be read."""
        try:
            return Calibration.model_validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, calibration: Calibration) -> None:
        """Keep it for the next call."""
        write_atomically(self._file, calibration.model_dump_json(indent=1).encode())

    def read_network(self, sha256: str | None = None) -> bytes | None:
        """The exported network if it is here whole, and the one of this digest if one is named."""
        try:
            data = self.network.read_bytes()
            kept = self.network.with_suffix(".sha256").read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return data if sha256_hex(data) == kept and sha256 in {None, kept} else None

    def write_network(self, data: bytes) -> None:
        """Keep an exported network with its digest beside it."""
        write_atomically(self.network, data)
        write_atomically(self.network.with_suffix(".sha256"), sha256_hex(data).encode())


def processor() -> str:
    """Model and instructions of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("vendor_id", "cpu family", "model", "model name", "flags")
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    return "|".join(value.strip() for name, value in sorted(found.items()) if name.strip() in wanted)


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the place, then rename there: readers see all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def _cosines(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = a_ND.astype(np.float64), b_ND.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-12)


def _or_worst(value: Any, worst: float) -> float:
    """A figure, or the worst one where the engine gave NaN."""
    return float(value) if np.isfinite(value) else worst

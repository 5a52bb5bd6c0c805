"""Choose the engine for a modality's embeddings by calibration; the plan records it, and workers follow the plan.

An exported network is stored in the run's files, and the plan has its SHA-256. It was made from a verified encoder and
contains that encoder's fingerprint. A worker checks both, so it does not have to load the backbone.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mmva.engines.calibration import Calibration, CalibrationCache, calibrate, fastest
from mmva.errors import CheckFailed, UsageError
from mmva.files import sha256_hex
from mmva.inference.config import ON_GPU, EngineInfo, check_engine_name
from mmva.models.bundle import BundleInfo, read_bundle
from mmva.models.predictor import ItemEncoder, Predictor

if TYPE_CHECKING:
    from mmva.backbones import BackboneSpec, Encoder

logger = logging.getLogger(__name__)

LoadEncoder = Callable[["BackboneSpec"], "Encoder"]
Calibrate = Callable[[str], tuple[Calibration, bytes | None]]


class Files(Protocol):
    """Storage for exported networks: a run's output."""

    def read(self, path: str) -> bytes:
        """Read a file."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create a file unless it exists."""


def choose_engines(
    bundle: Mapping[str, bytes],
    wanted: str,
    towers: Sequence[str],
    files: Files,
    *,
    cache: Path,
    load: LoadEncoder,
    gpu: bool = False,
    measure: Calibrate | None = None,
) -> dict[str, EngineInfo]:
    """Choose each tower's engine, and store the exported networks in the run's files.

    Args:
        bundle: The model's files by name.
        wanted: "auto" or an engine's name. "auto" is "cuda" if the workers have a GPU, else the fastest faithful CPU
            engine. GPU engines are not measured, because this process may have no GPU.
        towers: Modalities in the catalog; those without a tower are ignored.
        files: The run's output.
        cache: Folder for this machine's calibrations.
        load: Loads an encoder.
        gpu: Whether the workers have a GPU.
        measure: Modality -> its calibration, for clusters that measure on a worker; by default measured here.

    Raises UsageError for an engine that is unknown or not available for a modality.
    """
    name = check_engine_name(wanted)
    if name == "auto" and gpu:
        name = "cuda"
    info = unpacked(bundle)[0]
    chosen = {}
    for modality in (tower for tower in towers if tower in info.dims):
        if name in ON_GPU:
            unknown = {} if name == "cuda" else {"max_va_difference": None, "min_cosine": None}
            chosen[modality] = EngineInfo.model_validate({"name": name, **unknown})
        elif name == "torch":
            known = cache_of(cache, info, modality).read()
            speeds = {engine: figures.items_per_s for engine, figures in known.engines.items()} if known else {}
            chosen[modality] = EngineInfo(name="torch", items_per_s=speeds)
        else:
            calibration, network = measure(modality) if measure else calibrate_bundle(bundle, modality, cache, load)
            chosen[modality] = _choose(modality, name, calibration, network, files)
    return chosen


def calibrate_bundle(
    bundle: Mapping[str, bytes], modality: str, cache: Path, load: LoadEncoder
) -> tuple[Calibration, bytes | None]:
    """Calibrate a modality of a model on this machine, which should be like a worker's; see calibrate."""
    info, files = unpacked(bundle)
    model = Predictor(info, files["model.safetensors"], lambda name: load(_spec(info, name)))
    return calibrate(model, modality, cache_of(cache, info, modality))


def load_predictor(
    bundle: Mapping[str, bytes], engines: Mapping[str, EngineInfo], files: Files, load: LoadEncoder
) -> Predictor:
    """The model with its engines (fp32 torch by default); each encoder is loaded on first use.

    Exported networks are only read from the run's `files`. Raises CheckFailed if the bundle was changed, and on first
    use of an encoder if an exported network is not the planned one.
    """
    info, contents = unpacked(bundle)

    def load_engine(modality: str) -> ItemEncoder:
        engine = engines.get(modality, EngineInfo(name="torch"))
        if engine.name == "onnx":
            from mmva.engines.onnx_encoder import OnnxEncoder

            return OnnxEncoder(_read_network(files, modality, engine), lambda: load(_spec(info, modality)))
        encoder = load(_spec(info, modality))
        if engine.on_gpu:
            from mmva.engines.cuda import CudaEncoder

            return CudaEncoder(encoder, bf16=engine.name == "cuda-bf16")
        if engine.name == "torch-bf16":
            from mmva.engines.bf16 import Bf16Encoder

            return Bf16Encoder(encoder)
        return encoder

    return Predictor(info, contents["model.safetensors"], load_engine)


def sample_rate_of(info: BundleInfo) -> int | None:
    """Sample rate of music in Hz in the bundle's description of preprocessing; None without a music tower."""
    recorded = info.preprocessing.get("music", {})
    rate = recorded.get("sample_rate", recorded.get("sampling_rate"))
    if rate is None and "music" in info.dims:
        raise CheckFailed("preprocessing.json: the bundle has no sample rate for music; save it again")
    return rate


def pack_bundle(directory: Path) -> dict[str, bytes]:
    """A bundle's files by name, for workers that cannot read the folder."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def unpacked(bundle: Mapping[str, bytes]) -> tuple[BundleInfo, Mapping[str, bytes]]:
    """Description and files of a packed bundle. Raises CheckFailed if it was changed."""
    with tempfile.TemporaryDirectory(prefix="mmva-bundle-") as folder:
        for name, data in bundle.items():
            (Path(folder) / name).write_bytes(data)
        return read_bundle(folder)


def cache_of(cache: Path, info: BundleInfo, modality: str) -> CalibrationCache:
    """The calibrations of one modality of a model."""
    return CalibrationCache(cache, info.backbones[modality]["fingerprint"], info.digest, modality)


def _choose(modality: str, wanted: str, calibration: Calibration, network: bytes | None, files: Files) -> EngineInfo:
    measured = calibration.engines
    name = fastest(measured) if wanted == "auto" else wanted
    if name not in measured:
        raise UsageError(
            f"engine {name!r} is not available for {modality} here (available: {', '.join(measured)}); choose auto"
        )
    figures = measured[name]
    if not figures.faithful:
        logger.warning(
            "%s: engine %s differs from fp32 torch by up to %.2g in VA values; lowest cosine of embeddings: %.5f",
            *(modality, name, figures.max_va_difference, figures.min_cosine),
        )
    sha256 = path = None
    if name == "onnx":
        assert network is not None
        sha256 = sha256_hex(network)
        path = _network_path(modality, sha256)
        files.put_if_absent(path, network)
    speeds = {engine: round(other.items_per_s, 1) for engine, other in measured.items()}
    record = {"name": name, "file": path, "sha256": sha256, "items_per_s": speeds}
    return EngineInfo.model_validate(figures.model_dump() | record)


def _spec(info: BundleInfo, modality: str) -> BackboneSpec:
    from mmva.backbones import BackboneSpec

    return BackboneSpec.from_json(info.backbones[modality]["spec"])


def _network_path(modality: str, sha256: str) -> str:
    """The digest determines the path, so a plan cannot name another file."""
    return f"engines/{modality}-{sha256[:16]}.onnx"


def _read_network(files: Files, modality: str, engine: EngineInfo) -> bytes:
    if engine.sha256 is None or engine.file != _network_path(modality, engine.sha256):
        raise CheckFailed(f"the plan has no exported network of this run for {modality}; plan the run again")
    data = files.read(engine.file)
    if sha256_hex(data) != engine.sha256:
        raise CheckFailed(f"{engine.file}: changed since it was planned (SHA-256 differs)")
    return data

"""Which engine computes a modality's embeddings: chosen once by calibration, recorded in the plan, obeyed by workers.

An exported network goes into the run directory, and the plan names its SHA-256. It was made from an encoder whose
weights had been verified and carries that encoder's fingerprint, so a worker that checks both need not load the
backbone it came from.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmva.bundle import BundleInfo, read_bundle
from mmva.errors import CheckFailed, OperationFailed, UsageError
from mmva.inference.config import ON_GPU, EngineInfo
from mmva.predictor import ItemEncoder, Predictor
from mmva_platform.annotation.calibration import Calibration, CalibrationCache, Encodes, fastest, measure
from mmva_platform.annotation.plan import Plan
from mmva_platform.annotation.schema import sha256_hex
from mmva_platform.settings import Settings
from mmva_platform.storage import Storage
from mmva_platform.storage.fetch import folder_fetcher

if TYPE_CHECKING:
    from mmva.backbones import Encoder

logger = logging.getLogger(__name__)

_CHOICES = ("auto", "torch", "torch-bf16", "onnx", *ON_GPU)


def choose_engines(
    bundle_dir: Path, wanted: str, towers: Sequence[str], storage: Storage, settings: Settings
) -> dict[str, EngineInfo]:
    """Choose each tower's engine and put the exported networks into the run.

    They are compared on made-up items: this process never decodes a catalog's media, for one of them may kill it.

    Args:
        bundle_dir: The model.
        wanted: "auto" for the fastest on a CPU that is faithful to fp32 torch, or an engine's name. "cuda" and
            "cuda-bf16" are not compared with it: this process need not stand on a machine that has a GPU.
        towers: Those that the catalog needs; one that the model lacks is passed over.
        storage: The run's output.
        settings: Home (for the cache), and where backbones come from.

    Raises:
        UsageError: For an unknown engine, or one that does not exist for a modality.
    """
    if wanted not in _CHOICES:
        raise UsageError(f"engine {wanted!r} is unknown; choose one of {', '.join(_CHOICES)}")
    info, files = read_bundle(bundle_dir)
    model = Predictor(info, files["model.safetensors"], lambda modality: _load_encoder(info, modality, settings))
    chosen = {}
    for modality in (name for name in towers if name in info.dims):
        cache = CalibrationCache(settings.home, info.backbones[modality]["fingerprint"], info.digest, modality)
        if wanted in ON_GPU:
            unknown = {"max_va_difference": None, "min_cosine": None}
            chosen[modality] = EngineInfo.model_validate({"name": wanted, **(unknown if wanted != "cuda" else {})})
        elif wanted == "torch":
            known = cache.read()
            speeds = {name: figures.items_per_s for name, figures in known.engines.items()} if known else {}
            chosen[modality] = EngineInfo(name="torch", items_per_s=speeds)
        else:
            calibration = _calibration(model, modality, cache)
            chosen[modality] = _choose(modality, wanted, calibration, cache, storage)
    return chosen


def load_model(bundle: Mapping[str, bytes], plan: Plan, storage: Storage, settings: Settings) -> Predictor:
    """The model as workers run it: encoders by the plan's engines, each loaded when its modality first comes.

    Args:
        bundle: The bundle's files by name.
        plan: Names engines and exported networks.
        storage: The run's output, from which alone exported networks are read.
        settings: Where backbones come from.

    Raises:
        CheckFailed: If the bundle, or later an exported network, is not the one that was planned.
    """
    with tempfile.TemporaryDirectory(prefix="mmva-bundle-") as folder:
        for name, data in bundle.items():
            (Path(folder) / name).write_bytes(data)
        info, files = read_bundle(folder)

    def load(modality: str) -> ItemEncoder:
        engine = plan.engines.get(modality, EngineInfo(name="torch"))
        if engine.name == "onnx":
            from mmva.engines.onnx_encoder import OnnxEncoder

            data = _read_network(storage, modality, engine)
            return OnnxEncoder(data, lambda: _load_encoder(info, modality, settings))
        encoder = _load_encoder(info, modality, settings)
        if engine.on_gpu:
            encoder = _on_gpu(encoder)
        if engine.name in {"torch", "cuda"}:
            return encoder
        from mmva.engines.bf16 import Bf16Encoder

        return Bf16Encoder(encoder)

    return Predictor(info, files["model.safetensors"], load)


def _on_gpu(encoder: Encoder) -> Encoder:
    """The encoder on this worker's GPU, in true float32 unless autocast says otherwise."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError("engine cuda: torch sees no GPU on this worker; choose auto, or install torch's CUDA build")
    torch.backends.cudnn.allow_tf32 = False  # on by default, and further from fp32 than the limits allow
    return encoder.to("cuda")


def _choose(
    modality: str, wanted: str, calibration: Calibration, cache: CalibrationCache, storage: Storage
) -> EngineInfo:
    measured = calibration.engines
    name = fastest(measured) if wanted == "auto" else wanted
    if name not in measured:
        raise UsageError(
            f"engine {name!r} does not exist for {modality} here (there are {', '.join(measured)}); choose auto"
        )
    figures = measured[name]
    if not figures.faithful:
        logger.warning(
            "%s: engine %s differs from fp32 torch by up to %.2g in a VA value, embeddings' cosine is at least %.5f",
            *(modality, name, figures.max_va_difference, figures.min_cosine),
        )
    path = None
    if name == "onnx":
        data = cache.read_network(calibration.onnx_sha256)
        assert data is not None
        path = f"engines/{modality}-{calibration.onnx_sha256[:16]}.onnx" if calibration.onnx_sha256 else None
        assert path is not None
        storage.put_if_absent(path, data)
    return EngineInfo.model_validate(
        {
            "name": name,
            "file": path,
            "sha256": calibration.onnx_sha256 if path else None,
            "max_va_difference": figures.max_va_difference,
            "min_cosine": figures.min_cosine,
            "items_per_s": {engine: round(other.items_per_s, 1) for engine, other in measured.items()},
        }
    )


def _calibration(model: Predictor, modality: str, cache: CalibrationCache) -> Calibration:
    """From the cache if it is whole, else measured now: the only place that loads encoders of torch in the driver."""
    known = cache.read()
    if known and (known.onnx_sha256 is None or cache.read_network(known.onnx_sha256)):
        return known
    from mmva.engines.bf16 import Bf16Encoder, has_bf16

    encoder: Any = model.encoder(modality)
    batch = made_up_items(modality, encoder.sample_rate)
    encoders: dict[str, Encodes] = {"torch": encoder}
    if has_bf16():
        encoders["torch-bf16"] = Bf16Encoder(encoder)
    data = _exported(encoder, batch, cache)
    if data is not None:
        from mmva.engines.onnx_encoder import OnnxEncoder

        encoders["onnx"] = OnnxEncoder(data, lambda: encoder)
    with _one_thread():
        measured = measure(encoders, batch, lambda emb_ND: model.predict_embeddings(modality, emb_ND))
    calibration = Calibration(engines=measured, onnx_sha256=sha256_hex(data) if data is not None else None)
    cache.write(calibration)
    return calibration


def _exported(encoder: Any, items: Sequence[Any], cache: CalibrationCache) -> bytes | None:
    """The encoder's network as ONNX, from the cache or now; None if it has no such form."""
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


def _load_encoder(info: BundleInfo, modality: str, settings: Settings) -> Encoder:
    from mmva.backbones import BackboneSpec, load_encoder

    return load_encoder(
        BackboneSpec.from_json(info.backbones[modality]["spec"]),
        fetch=folder_fetcher(settings),
        mirror=settings.backbone_mirror,
        trusted_repos=settings.trust_remote_code,
    )


def _read_network(storage: Storage, modality: str, engine: EngineInfo) -> bytes:
    # The digest names the file: a plan cannot point anywhere else.
    if engine.sha256 is None or engine.file != f"engines/{modality}-{engine.sha256[:16]}.onnx":
        raise CheckFailed(f"{storage.uri}: the plan names no exported network of this run for {modality}")
    data = storage.read(engine.file)
    if sha256_hex(data) != engine.sha256:
        raise CheckFailed(f"{storage.join(engine.file)}: changed since it was planned (SHA-256 differs)")
    return data


def made_up_items(modality: str, sample_rate: int | None) -> list[Any]:
    """Items to calibrate with, the same in every call."""
    rng = np.random.default_rng(0)
    if modality == "image":
        from PIL import Image

        pixels = rng.integers(0, 256, (8, 12, 16, 3), np.uint8)
        return [Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC) for small in pixels]
    if modality == "music":
        assert sample_rate is not None
        seconds_T = np.arange(3 * sample_rate) / sample_rate
        tones = [0.3 * np.sin(2 * np.pi * pitch * seconds_T) for pitch in (110, 220, 440, 880)]
        return [(tone + rng.normal(0, 0.05, len(tone))).astype(np.float32) for tone in tones]
    return ["a slow sad piano", "aggressive fast metal drums with a screaming guitar, recorded live", "calm strings"]


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

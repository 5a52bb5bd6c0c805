"""The model: three towers on one plane, encoders beside them, an item's result its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmva.errors import CheckFailed, UsageError
from mmva.models.model import MMVA, ModelConfig

from .fake_encoder import FakeEncoder

DIMS = {"image": 3, "music": 5, "caption": 4}


@pytest.fixture
def model() -> MMVA:
    torch.manual_seed(0)
    made = MMVA(DIMS, ModelConfig(hidden=8))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def test_forward_takes_any_subset_of_modalities(model: MMVA) -> None:
    va = model({"music": torch.randn(4, 5), "image": torch.randn(2, 3)})
    assert {modality: tuple(points.shape) for modality, points in va.items()} == {"music": (4, 2), "image": (2, 2)}
    assert all(((points >= 0) & (points <= 1)).all() for points in va.values())


def test_prediction_ignores_dropout_and_leaves_the_mode_alone(model: MMVA) -> None:
    emb_ND = np.random.default_rng(0).normal(size=(50, 5))
    model.train()
    first, again = model.predict_embeddings("music", emb_ND), model.predict_embeddings("music", emb_ND)
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.float32
    assert all(module.training for module in model.modules())
    assert model.predict_embeddings("music", emb_ND[:0]).shape == (0, 2)


def test_a_result_belongs_to_its_item(model: MMVA) -> None:
    emb_ND = np.random.default_rng(0).normal(size=(5000, 5)).astype(np.float32)
    together = model.predict_embeddings("music", emb_ND)
    alone = np.concatenate([model.predict_embeddings("music", emb_ND[i : i + 1]) for i in range(0, 5000, 499)])
    np.testing.assert_allclose(together[::499], alone, atol=1e-6)


def test_items_go_through_encoder_and_tower(model: MMVA) -> None:
    model.attach_encoders({"image": FakeEncoder()})
    items = [np.array([0.1, 0.9]), np.array([0.4, 0.5])]
    np.testing.assert_allclose(model.embed("image", items), [[0.5, 0.9, 0.1], [0.45, 0.5, 0.4]], atol=1e-6)
    expected = model.predict_embeddings("image", model.embed("image", items))
    np.testing.assert_array_equal(model.predict("image", items), expected)


def test_encoders_are_no_part_of_parameters_or_state(model: MMVA) -> None:
    before = set(model.state_dict())
    encoder = FakeEncoder().train()
    model.attach_encoders({"image": encoder})
    assert set(model.state_dict()) == before
    assert not encoder.training
    assert all(parameter is not encoder.weight for parameter in model.parameters())
    assert model.backbones["image"] == {"spec": encoder.spec.to_json(), "fingerprint": "f" * 64, "dim": 3}
    assert model.preprocessing["image"] == encoder.preprocessing


def test_another_backbone_is_refused(model: MMVA) -> None:
    model.attach_encoders({"image": FakeEncoder()})
    with pytest.raises(CheckFailed, match="image: this encoder is eeee"):
        model.attach_encoders({"image": FakeEncoder(fingerprint="e" * 64)})
    with pytest.raises(UsageError, match="width is 2, the tower's is 3"):
        model.attach_encoders({"image": FakeEncoder(dim=2)})


def test_statistics_reach_the_towers(model: MMVA) -> None:
    emb_ND = np.random.default_rng(0).normal(7, 2, (100, 4))
    model.set_statistics({"caption": emb_ND})
    torch.testing.assert_close(model.tower("caption").mean_D, torch.from_numpy(emb_ND.mean(0)).float())
    assert torch.count_nonzero(model.tower("image").mean_D) == 0


def test_mistakes_are_named(model: MMVA) -> None:
    with pytest.raises(UsageError, match="no tower for 'video'"):
        MMVA({"video": 3})
    with pytest.raises(UsageError, match="no 'music' encoder is attached"):
        model.predict("music", [])
    with pytest.raises(UsageError, match="no 'music' tower; it has image"):
        MMVA({"image": 3}).predict_embeddings("music", np.zeros((1, 5)))
    with pytest.raises(ValueError, match=r"\[N, 5\], got \[2, 3\]"):
        model.predict_embeddings("music", np.zeros((2, 3)))


def test_every_option_explains_its_default() -> None:
    assert all(field.description for field in ModelConfig.model_fields.values())


@pytest.mark.slow
def test_real_encoders_fit(tmp_path: Path) -> None:
    from PIL import Image

    from mmva.backbones import load_encoder, preset
    from mmva.models.bundle import load_bundle, save_bundle

    encoders = {modality: load_encoder(spec) for modality, spec in preset("tiny").specs.items()}
    model = MMVA({modality: encoder.dim for modality, encoder in encoders.items()})
    model.attach_encoders(encoders)
    noise = np.random.default_rng(0)
    rate = encoders["music"].sample_rate
    items = {
        "image": [Image.fromarray(noise.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(3)],
        "music": [(0.1 * noise.normal(size=3 * rate)).astype(np.float32) for _ in range(3)],
        "caption": ["calm piano", "loud drums", "a sad song"],
    }
    for modality in items:
        torch.nn.init.normal_(model.tower(modality).linear.weight)
    widths = {modality: {"valence": 0.2, "arousal": 0.2} for modality in items}
    save_bundle(tmp_path / "bundle", model, intervals=widths, card="# Card\n", provenance={})
    loaded = load_bundle(tmp_path / "bundle")
    for modality, examples in items.items():
        va_N2 = model.predict(modality, examples)
        np.testing.assert_allclose(loaded.predict(modality, examples), va_N2, atol=1e-6)
        np.testing.assert_allclose(model.predict(modality, examples[1:2]), va_N2[1:2], atol=1e-5)
        assert np.ptp(va_N2, axis=0).min() > 0

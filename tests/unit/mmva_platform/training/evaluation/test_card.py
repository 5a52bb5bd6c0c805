"""The model card: every section, with what a reader needs in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmva.modalities import AXES, MODALITIES
from mmva_platform.training.evaluation.card import model_card, versions
from mmva_platform.training.evaluation.evaluate import Evaluation, Figure
from mmva_platform.training.evaluation.slices import SliceFigure
from mmva_platform.training.recipe import Recipe

FIGURE = Figure(0.0123, 0.011, 0.0137)


@pytest.fixture(scope="module")
def card() -> str:
    names = ("mse", "mae", "r2", "pearson", "ccc")
    retrieval = {name: FIGURE for k in ("ndcg@10", "recall@1", "recall@5", "recall@10") for name in (k, f"random_{k}")}
    evaluation = Evaluation(
        dataset="s3://media/set",
        dataset_digest="d" * 64,
        split="test",
        model_digest=None,
        rows=dict.fromkeys(MODALITIES, 240),
        groups=dict.fromkeys(MODALITIES, 60),
        metrics={m: {axis: dict.fromkeys(names, FIGURE) for axis in AXES} for m in MODALITIES},
        matching={"image-music": FIGURE},
        retrieval={"image->music": retrieval},
        floors={modality: dict.fromkeys(AXES, 0.03) for modality in MODALITIES},
        sigma=0.38,
        warnings=("the split leaks",),
    )
    spec: dict[str, Any] = {"family": "minilm", "source": "package"}
    provenance = {
        "run_name": "a-run",
        "dataset": "s3://media/set",
        "dataset_digest": "d" * 64,
        "rows": {"train": {"image": 700}, "val": {"image": 60}, "test": {"image": 240}},
        "versions": versions(),
        "commit": None,
    }
    return model_card(
        evaluation,
        Recipe(name="a-run", dataset="s3://media/set", preset="tiny"),
        {"caption": {"spec": spec, "fingerprint": "f" * 64, "dim": 384}},
        {"image": dict.fromkeys(AXES, 0.2)},
        provenance,
        slices=[
            SliceFigure("music", "source", "DEAM", 240, 60, FIGURE),
            SliceFigure("music", "source", "ours", 12, 3, FIGURE),
            SliceFigure("music", "loudness", "quiet", 80, 31, FIGURE),
        ],
        terms={"DEAM": "for research", "EmoBank": "CC-BY-SA 4.0"},
    )


def test_every_section_has_something_in_it(card: str) -> None:
    _, *sections = card.split("\n## ")
    names = [section.partition("\n")[0] for section in sections]
    assert names == [
        "Intended use", "Backbones", "Data", "Figures", "Slices", "90 % intervals", "Limits", "Licences", "Recipe",
        "Environment",
    ]  # fmt: skip
    assert all(section.partition("\n")[2].strip() for section in sections)


def test_it_says_what_it_was_measured_on_with_intervals_and_slices(card: str) -> None:
    assert "> **Warning.** the split leaks" in card
    assert "| train | 700 | 0 | 0 |" in card
    assert "0.0123 [0.0110, 0.0137]" in card
    assert "| music | loudness | quiet | 80 | 31 | 0.0123 [0.0110, 0.0137] |" in card


def test_licences_of_data_and_backbones_are_named_or_said_to_be_unknown(card: str) -> None:
    data, _, _ = card.partition("## Licences")[2].partition("\n## ")
    assert "| DEAM | for research |" in data
    assert "| EmoBank | CC-BY-SA 4.0 |" in data, "its rows may all be in the training split"
    assert "| ours | not stated |" in data
    assert "Apache-2.0" in card.partition("## Backbones")[2].partition("\n## ")[0]


def test_slices_of_a_trained_model_cover_every_row_once(tmp_path: Any) -> None:
    import torch

    from mmva.models.model import MMVA
    from mmva_platform.datasets.features import load_features
    from mmva_platform.settings import Settings
    from mmva_platform.training.evaluation.slices import slice_figures

    from ....helpers.embedded_dataset import DIM, OURS, make_dataset

    data = make_dataset(tmp_path / "data", OURS)
    torch.manual_seed(0)
    model = MMVA(dict.fromkeys(MODALITIES, DIM)).eval()
    settings = Settings(home=tmp_path)
    features = load_features(str(data), dict.fromkeys(MODALITIES, OURS), settings)
    figures = slice_figures(model, features, settings)
    test = features.split("test")
    rows = {modality: len(found) for modality, found in test.items()}
    kinds = {(each.modality, each.kind) for each in figures}
    assert kinds == {(m, k) for m in MODALITIES for k in ("source", "quadrant")} | {
        ("image", "brightness"), ("music", "loudness"),
    }  # fmt: skip
    for modality, kind in kinds:
        parts = [each for each in figures if (each.modality, each.kind) == (modality, kind)]
        assert sum(each.rows for each in parts) == rows[modality]
        points_N2 = model.predict_embeddings(modality, test[modality].emb_ND)
        whole = np.square(points_N2 - test[modality].va_N2).mean()
        assert sum(each.mse.value * each.rows for each in parts) / rows[modality] == pytest.approx(whole, rel=1e-5)

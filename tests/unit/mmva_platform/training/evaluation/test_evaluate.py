"""Evaluation: every row counted, intervals by group, floors from the training split, leakage said first."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmva.errors import UsageError
from mmva.evaluation.intervals import interval_bounds
from mmva.evaluation.metrics import PAIRED_ROWS
from mmva.imemnet.splits import LEAKAGE_WARNING
from mmva.modalities import AXES, MODALITIES
from mmva.models.bundle import load_bundle, save_bundle
from mmva.models.model import MMVA
from mmva_platform.datasets.dataset import Dataset
from mmva_platform.datasets.features import Features, ModalityFeatures, load_features
from mmva_platform.datasets.identity import training_record
from mmva_platform.settings import Settings
from mmva_platform.training.evaluation.evaluate import (
    Evaluation,
    evaluate,
    evaluate_model,
    intervals_from,
    reference_of,
)

from ....helpers.embedded_dataset import OURS, make_bundle, make_dataset

DIMS = {"image": 4, "music": 3, "caption": 5}
COUNTS = {"train": 42, "val": 48, "test": 30}


def modality_features(dim: int, seed: int) -> ModalityFeatures:
    rng = np.random.default_rng(seed)
    split = np.repeat(list(COUNTS), list(COUNTS.values()))
    size = len(split)
    return ModalityFeatures(
        ids=np.array([f"{row // 3}-{row % 3}" for row in range(size)]),
        emb_ND=rng.normal(size=(size, dim)).astype(np.float32),
        va_N2=rng.uniform(0.2, 0.8, (size, 2)),
        split=split,
        group=np.array([str(row // 3) for row in range(size)]),
    )


def features_of(warnings: tuple[str, ...] = (), **replaced: ModalityFeatures) -> Features:
    modalities: dict[Any, ModalityFeatures] = {m: modality_features(dim, dim) for m, dim in DIMS.items()}
    return Features(
        uri="data",
        digest="d" * 64,
        fingerprints=dict.fromkeys(DIMS, "f" * 64),
        specs={},
        warnings=warnings,
        modalities=modalities | replaced,
    )


@pytest.fixture
def model() -> MMVA:
    """Untrained towers: every prediction is the neutral point (.5, .5)."""
    return MMVA(DIMS).eval()


def test_figures_of_a_constant_prediction(model: MMVA) -> None:
    features = features_of()
    evaluation = evaluate_model(model, features)
    labels = features.split("test")["music"].va_N2
    figure = evaluation.metrics["music"]["arousal"]["mse"]
    assert figure.value == pytest.approx(np.mean((labels[:, 1] - 0.5) ** 2), rel=1e-6)
    assert figure.low < figure.value < figure.high
    assert evaluation.metrics["music"]["arousal"]["pearson"].value == 0


def test_every_row_and_group_of_the_split_counts(model: MMVA) -> None:
    evaluation = evaluate_model(model, features_of(), "test")
    assert evaluation.rows == {"image": 30, "music": 30, "caption": 30}
    assert evaluation.groups == {"image": 10, "music": 10, "caption": 10}
    assert set(evaluation.matching) == {"image-music", "image-caption", "music-caption"}
    assert len(evaluation.retrieval) == 6


def test_floor_is_the_training_mean_on_the_test_rows(model: MMVA) -> None:
    features = features_of()
    train, test = (features.split(name)["image"].va_N2 for name in ("train", "test"))
    expected = np.mean((test - train.mean(axis=0)) ** 2, axis=0)
    floors = evaluate_model(model, features).floors["image"]
    assert [floors["valence"], floors["arousal"]] == pytest.approx(expected)


def test_a_perfect_model_is_above_its_floor_and_matches_exactly() -> None:
    # Embeddings that are the labels' logits: standardised by nothing, the identity on two inputs predicts exactly.
    features = features_of()
    perfect = {}
    for modality, rows in features.items():
        logits = np.log(rows.va_N2 / (1 - rows.va_N2)).astype(np.float32)
        perfect[modality] = ModalityFeatures(rows.ids, logits, rows.va_N2, rows.split, rows.group)
    model = MMVA(dict.fromkeys(DIMS, 2)).eval()
    for modality in DIMS:
        model.tower(modality).linear.weight.data.copy_(np_eye())
    evaluation = evaluate_model(model, features_of(**perfect))
    assert evaluation.metrics["caption"]["valence"]["r2"].value == pytest.approx(1, abs=1e-6)
    assert evaluation.matching["image-music"].value == pytest.approx(0, abs=1e-10)
    assert evaluation.retrieval["image->music"]["recall@1"].value == 1
    assert evaluation.metrics["image"]["valence"]["mse"].value < evaluation.floors["image"]["valence"]


def np_eye() -> Any:
    import torch

    return torch.eye(2)


def test_leakage_is_said_before_any_figure(model: MMVA) -> None:
    text = evaluate_model(model, features_of(warnings=(LEAKAGE_WARNING,))).to_markdown()
    assert LEAKAGE_WARNING in text
    assert text.index(LEAKAGE_WARNING) < text.index("| modality |")
    assert LEAKAGE_WARNING not in evaluate_model(model, features_of()).to_markdown()


def test_a_person_finds_every_axis_its_interval_and_the_published_floors(model: MMVA) -> None:
    text = evaluate_model(model, features_of()).to_markdown()
    for cell in ("| image | valence |", "| caption | arousal |", "0.0240", "0.0483", "0.0272", "0.0283", "Emo-CLIM"):
        assert cell in text


def test_json_round_trip_keeps_what_is_not_defined(model: MMVA) -> None:
    features = features_of()
    rows = features["image"]
    constant = ModalityFeatures(rows.ids, rows.emb_ND, np.full_like(rows.va_N2, 0.4), rows.split, rows.group)
    evaluation = evaluate_model(model, features_of(image=constant))
    assert math.isnan(evaluation.metrics["image"]["valence"]["r2"].value)
    text = json.dumps(evaluation.to_json(), allow_nan=False)
    again = Evaluation.from_json(json.loads(text))
    assert again.to_json() == evaluation.to_json()
    assert again.metrics["music"] == evaluation.metrics["music"]


def test_a_modality_that_the_dataset_lacks_is_named(model: MMVA) -> None:
    features = features_of()
    del features.modalities["caption"]
    evaluation = evaluate_model(model, features)
    assert "caption" not in evaluation.metrics
    assert any("no caption" in warning for warning in evaluation.warnings)


def test_pairs_of_a_large_split_are_of_a_stated_sample_and_points_of_every_row(model: MMVA) -> None:
    rng = np.random.default_rng(0)
    rows = PAIRED_ROWS + 1_000
    ids = np.array([str(row) for row in range(rows)])
    large = ModalityFeatures(
        ids, np.zeros((rows, DIMS["image"]), np.float32), rng.uniform(0, 1, (rows, 2)), np.full(rows, "test"), ids
    )
    evaluation = evaluate_model(model, features_of(image=large))
    assert evaluation.rows["image"] == evaluation.groups["image"] == rows
    assert evaluation.sampled == {"image": PAIRED_ROWS}
    error = np.square(large.va_N2[:, 0] - 0.5).mean()
    assert evaluation.metrics["image"]["valence"]["mse"].value == pytest.approx(error)
    assert f"random sample ({PAIRED_ROWS} image rows; retrieval likewise)" in evaluation.to_markdown()
    assert Evaluation.from_json(evaluation.to_json()).sampled == evaluation.sampled
    small = evaluate_model(model, features_of())
    assert small.sampled == {}
    assert "sample" not in small.to_markdown()


def test_rows_that_the_model_was_trained_on_are_said_above_the_figures(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", OURS)
    record = training_record(Dataset.open(str(data)), MODALITIES)
    bundle = make_bundle(tmp_path / "bundle", OURS, 0, provenance={"training_data": record})
    assert evaluate(bundle, str(data), Settings()).warnings == ()
    other = make_dataset(tmp_path / "other", OURS, swapped=True)
    found = evaluate(bundle, str(other), Settings())
    assert len(found.warnings) == 3
    assert "20 of 20 image rows, or others of their groups, were in the model's training data" in found.to_markdown()


def test_a_split_read_on_its_own_gives_the_figures_of_the_whole_dataset(tmp_path: Path) -> None:
    data, bundle = make_dataset(tmp_path / "data", OURS), make_bundle(tmp_path / "bundle", OURS, 0)
    features = load_features(str(data), dict.fromkeys(MODALITIES, OURS), Settings())
    alone = evaluate(bundle, str(data), Settings())
    whole = evaluate_model(load_bundle(bundle, load_encoders=False), features)
    assert alone.floors == {m: pytest.approx(floors) for m, floors in whole.floors.items()}
    assert replace(alone, floors={}) == replace(whole, floors={})


def test_an_unknown_split_is_a_usage_error(model: MMVA) -> None:
    with pytest.raises(UsageError, match="split 'tset' has no rows to evaluate"):
        evaluate_model(model, features_of(), "tset")


def test_intervals_cover_the_validation_labels(model: MMVA) -> None:
    features = features_of()
    intervals = intervals_from(model, features)
    residual_N2 = np.abs(features.split("val")["image"].va_N2 - 0.5)
    covered = (residual_N2[:, 0] <= intervals["image"]["valence"] + 1e-6).mean()
    assert 0.9 <= covered < 1


def test_the_reference_is_of_the_models_points_on_the_training_split() -> None:
    torch.manual_seed(0)
    model = MMVA(DIMS).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.3)
    features = features_of()
    reference = reference_of(model, features)
    assert json.loads(json.dumps(reference)) == reference
    assert reference["items"] == dict.fromkeys(DIMS, COUNTS["train"])
    va_N2 = model.predict_embeddings("music", features.split("train")["music"].emb_ND)
    assert reference["music"]["arousal"][0] == pytest.approx(va_N2[:, 1].min())
    assert reference["music"]["arousal"][50] == pytest.approx(np.median(va_N2[:, 1]))
    assert reference["music"]["valence"][-1] == pytest.approx(va_N2[:, 0].max())


def test_intervals_cover_held_out_labels_by_modality_and_axis_through_the_bundle(tmp_path: Path) -> None:
    """Calibrated on val, saved, loaded, and applied to test rows that neither training nor calibration has seen.

    All clips of a song have its label, as they nearly do.
    """
    covered: dict[tuple[str, str], list[float]] = {}
    for seed in range(40):
        drawn = {m: modality_features(dim, 100 * seed + dim) for m, dim in DIMS.items()}
        features = features_of(**{m: replace(of, va_N2=of.va_N2[::3].repeat(3, axis=0)) for m, of in drawn.items()})
        model = MMVA(DIMS).eval()
        for modality, dim in DIMS.items():
            model.backbones[modality] = {"spec": {}, "fingerprint": "f" * 64, "dim": dim}
            model.preprocessing[modality] = {}
        folder = tmp_path / str(seed)
        save_bundle(folder, model, intervals=intervals_from(model, features, "val"), card="", provenance={})
        loaded = load_bundle(folder, load_encoders=False)
        for modality, rows in features.split("test").items():
            va_N2 = loaded.predict_embeddings(modality, rows.emb_ND)
            low_N2, high_N2 = interval_bounds(va_N2, loaded.intervals[modality])
            inside_N2 = (low_N2 <= rows.va_N2) & (rows.va_N2 <= high_N2)
            for index, axis in enumerate(AXES):
                covered.setdefault((modality, axis), []).append(float(inside_N2[:, index].mean()))
    assert len(covered) == len(DIMS) * 2
    # 16 songs: the worst of 17 promises .94 in expectation; rows would promise the second worst, .88.
    for name, shares in covered.items():
        assert 0.9 <= np.mean(shares) <= 0.98, name
